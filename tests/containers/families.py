"""Other families in containers: Qwen2.5-VL with a picture, and Qwen3, which takes text only, without a vision service.

Each is a small random model that the exporter's image makes; the services have to answer as transformers does there.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import triptych
from tests.containers.engine import ROOT, Project, docker

QUESTION = "What colour is the sky?"
TOKENS = 12
PICTURE = ROOT / "demo" / "examples" / "scene.png"
TEXT = "docker-compose.text.yml"


def make(family: str, image: str, out: Path) -> list[int]:
    """Write a bundle to `out`/bundle. Returns the tokens of transformers' answer.

    Args:
        family: `qwen2_5_vl` or `qwen3`.
        image: The exporter's.
        out: A directory of this user's.
    """
    # The tests alone are mounted: the rest is what is installed in the image.
    said = docker(
        "run", "--rm", "--network=none", f"--user={os.getuid()}:{os.getgid()}", "--entrypoint=python",
        "--volume", f"{ROOT / 'tests'}:/src/tests:ro", "--volume", f"{PICTURE}:/src/demo/examples/{PICTURE.name}:ro",
        "--volume", f"{out}:/out", "--env", "PYTHONPATH=/src", "--env", "HF_HUB_OFFLINE=1",
        image, "-m", "tests.containers.random_model", family, "/out", f"/src/demo/examples/{PICTURE.name}",
        seconds=300,
    )  # fmt: skip
    tokens: list[int] = json.loads(said.splitlines()[-1])
    return tokens


def serve(containers: Project, bundle: Path, *more: str) -> None:
    """Start the services with a bundle, and the compose files that are named besides."""
    settings = containers.env_file.read_text()
    kept = [line for line in settings.splitlines() if not line.startswith(("TRIPTYCH_BUNDLE=", "VISION_DTYPE="))]
    # The answers are compared with transformers' in float32.
    values = [f"TRIPTYCH_BUNDLE={bundle}", "VISION_DTYPE=float32"]
    containers.env_file.write_text("\n".join([*kept, *values, ""]))
    containers.compose("down", "--timeout", "5")
    containers.compose(*more, "up", "--detach", "--no-build", seconds=600)


def with_pictures(containers: Project, image: str) -> list[tuple[str, bool, object]]:
    """Qwen2.5-VL. Returns what was checked, whether it holds, and what was seen."""
    with tempfile.TemporaryDirectory() as scratch:
        expected = make("qwen2_5_vl", image, Path(scratch))
        serve(containers, Path(scratch) / "bundle")
        containers.wait_healthy({"vision": 1, "decoder": 1, "gateway": 1}, seconds=120)
        with triptych.Client(containers.address(50051)) as client:
            answer = client.answer([triptych.user(QUESTION, triptych.Image(PICTURE))], max_tokens=TOKENS)
            blind = client.answer([triptych.user(QUESTION)], max_tokens=TOKENS)
        return [
            ("Qwen2.5-VL: the answer about a picture is transformers'", list(answer.token_ids) == expected, expected),
            ("Qwen2.5-VL: without the picture it is another", blind.token_ids != answer.token_ids, ""),
        ]


def text_only(containers: Project, image: str) -> list[tuple[str, bool, object]]:
    """Qwen3 with docker-compose.text.yml. Returns the same."""
    with tempfile.TemporaryDirectory() as scratch:
        expected = make("qwen3", image, Path(scratch))
        serve(containers, Path(scratch) / "bundle", "-f", str(ROOT / TEXT))
        containers.wait_healthy({"decoder": 1, "gateway": 1}, seconds=120)
        with triptych.Client(containers.address(50051)) as client:
            answer = client.answer([triptych.user(QUESTION)], max_tokens=TOKENS)
            refused = ""
            try:
                client.answer([triptych.user(QUESTION, triptych.Image(PICTURE))], max_tokens=1)
            except triptych.TriptychError as error:
                refused = error.reason
        door = f"http://{containers.address(8080)}"
        (listed,) = _get(f"{door}/v1/models")["data"]
        return [
            ("Qwen3: no vision service runs", not containers.ids("vision"), ""),
            ("Qwen3: the answer is transformers'", list(answer.token_ids) == expected, expected),
            ("Qwen3: a picture is refused", refused == "MEDIA_NOT_SUPPORTED", refused),
            ("Qwen3: the HTTP door says that it takes text", listed["input_modalities"] == ["text"], listed),
            ("Qwen3: the HTTP door is healthy", _get(f"{door}/healthz")["status"] == "serving", ""),
        ]


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  # http, on the loopback
        return json.load(response)
