"""Requests and answers of the OpenAI-compatible door, written shortly."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"


def data_url(data: bytes, kind: str = "image/png") -> str:
    """A file as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes, **more: Any) -> dict[str, Any]:
    """A part with a picture."""
    return {"type": "image_url", "image_url": {"url": data_url(data), **more}}


def film(data: bytes, **more: Any) -> dict[str, Any]:
    """A part with a video."""
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4"), **more}}


def ask(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A conversation of one message."""
    return {"messages": [{"role": "user", "content": list(parts)}], **fields}


def error(response: httpx.Response) -> tuple[int, str, Any, str]:
    """Status, type, param and code of an error."""
    assert response.headers["x-request-id"]
    body = response.json()["error"]
    assert body["message"]
    return response.status_code, body["type"], body["param"], body["code"]


def events(body: str) -> list[Any]:
    """The JSON of each event, and `[DONE]`; comments are left out."""
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line and not line.startswith(":")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
