"""Requests and answers, written shortly."""

from __future__ import annotations

import contextlib
from typing import Any

from gateway.conductor import Conductor
from gateway.retry import Deadline
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2


def text(value: str) -> chat_pb2.Part:
    """A text part."""
    return chat_pb2.Part(text=value)


def image(data: bytes) -> chat_pb2.Part:
    """An image part."""
    return chat_pb2.Part(image=media_pb2.Media(data=data))


def video(data: bytes) -> chat_pb2.Part:
    """A video part."""
    return chat_pb2.Part(video=media_pb2.Media(data=data))


def user(*parts: chat_pb2.Part) -> chat_pb2.Message:
    """What the person says."""
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=parts)


def ask(*parts: chat_pb2.Part, **fields: Any) -> gateway_pb2.ChatRequest:
    """A conversation of one message."""
    return gateway_pb2.ChatRequest(messages=[user(*parts)], **fields)


async def chat(
    conductor: Conductor, request: gateway_pb2.ChatRequest, seconds: float = 30.0
) -> list[chat_pb2.ChatEvent]:
    """All events of an answer."""
    events = conductor.chat(request, request_id="r-1", deadline=Deadline(seconds))
    async with contextlib.aclosing(events):
        return [event async for event in events]


def answer(events: list[chat_pb2.ChatEvent]) -> str:
    """The text of an answer."""
    return "".join(event.delta.text for event in events)


def kinds(events: list[chat_pb2.ChatEvent]) -> list[str | None]:
    """What the events are."""
    return [event.WhichOneof("event") for event in events]
