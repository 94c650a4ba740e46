"""What the three services log at the lowest level: never the content of a request."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import triptych
from tests.e2e.conftest import READY
from tests.processes import line, rest, started

MARK = "Quetzalcoatlus"
"""Stands in each text, file and key that is sent."""

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Logged:
    """A running system that logs into a file."""

    grpc: str
    http: str


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file."""
    return tmp_path / "log"


@contextlib.contextmanager
def logging_into(path: Path) -> Iterator[Logged]:
    """Run the system; what it logs is complete at the end of the block."""
    command = [sys.executable, "-m", "triptych_cli", "up", "--grpc-port", "0", "--http-port", "0"]
    environment = {**os.environ, "VISION_DTYPE": "float32", "DECODER_CONTEXT_LENGTH": "2048"}
    with path.open("wb") as file, started([*command, "--log-level", "debug"], env=environment, stderr=file) as process:
        found = READY.fullmatch(line(process.stdout, "the line that says that it is ready"))
        assert found is not None
        yield Logged(found[1], found[2])
        process.terminate()
        rest(process.stdout, "the end of the system")
        process.wait(60)


def _picture(path: Path) -> Path:
    marked = PngInfo()
    marked.add_text("Comment", MARK)
    Image.new("RGB", (64, 64), (214, 40, 40)).save(path, pnginfo=marked)
    assert MARK.encode() in path.read_bytes()
    return path


def _url(data: bytes) -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def _chat(*parts: Any, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": MARK}, *parts]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


def test_no_content_is_logged(log: Path, tmp_path: Path) -> None:
    """Texts, files, schemas and keys pass through answers and refusals at both doors, and none is in the log."""
    picture = _picture(tmp_path / "marked.png")
    schema = {"type": "object", "description": MARK, "properties": {MARK: {"type": "string", "maxLength": 2}}}
    refused: list[tuple[int, dict[str, Any] | str]] = [
        (400, _chat(_url(b"\x89PNG\r\n\x1a\n" + MARK.encode()))),
        (400, _chat(_url(MARK.encode()))),
        (400, _chat({"type": "image_url", "image_url": {"url": f"data:{MARK}"}})),
        (400, _chat({"type": "image_url", "image_url": {"url": f"https://example.com/{MARK}"}})),
        (400, _chat({"type": MARK, MARK: MARK})),
        (400, {"messages": [{"role": MARK, "content": MARK}]}),
        (400, {"messages": [{"role": "user", "content": f"{MARK} " * 4000}]}),
        (404, _chat(model=MARK)),
        (400, _chat(temperature=MARK)),
        (400, _chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": MARK}}})),
        (400, _chat(response_format={"type": MARK})),
        (400, _chat(tool_choice={"type": "function", "function": {"name": MARK}}, tools=[])),
        (400, f'{{"messages": "{MARK}'),
        (400, json.dumps(MARK)),
    ]
    headers = {"authorization": f"Bearer {MARK}", "x-api-key": MARK, "cookie": MARK}
    with logging_into(log) as system:
        with triptych.Client(system.grpc, retries=0) as client:
            question = [triptych.system(MARK), triptych.user(picture, MARK)]
            assert client.answer(question, max_tokens=4, stop=[MARK], response_format=schema).usage.completion_tokens
            for wrong in (
                {"response_format": {"type": MARK}},
                {"model": MARK},
                {"max_tokens": 1 << 30},
                {"seed": 1, "temperature": -1.0},
            ):
                with pytest.raises(triptych.TriptychError):
                    client.answer(question, **wrong)  # type: ignore[arg-type]
            with pytest.raises(triptych.TriptychError):
                client.answer(triptych.user(triptych.Image(MARK.encode()), MARK))
        with httpx.Client(base_url=system.http, headers=headers, timeout=60, trust_env=False) as http:
            for stream in (False, True):
                answer = http.post(CHAT, json=_chat(_url(picture.read_bytes()), stream=stream, user=MARK))
                assert answer.status_code == 200
            for status, body in refused:
                content = body if isinstance(body, str) else json.dumps(body)
                response = http.post(CHAT, content=content, headers={"content-type": "application/json"})
                assert response.status_code == status, (content[:200], response.text)
            assert http.post("/v1/completions", json={"prompt": [MARK, {}]}).status_code == 400
            assert http.post("/tokenize", json={"prompt": MARK}).status_code == 200
            assert http.get(f"/{MARK}?{MARK}={MARK}").status_code == 404

    logged = log.read_text(encoding="utf-8")
    for service in ("gateway", "vision_service", "decoder_service"):
        assert f"service={service}" in logged
    for reason in ("IMAGE_UNREADABLE", "FORM_INVALID", "FIELD_INVALID", "MODEL_NOT_FOUND"):  # the refusals are
        assert reason in logged
    assert [found for found in logged.splitlines() if _shows_mark(found)] == []


def _shows_mark(text: str) -> bool:
    encoded = base64.b64encode(MARK.encode()).decode()[:12]
    return MARK.lower() in text.lower() or encoded in text
