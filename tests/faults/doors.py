"""Asks a question through one of the gateway's doors, as clients do: with the retries of our client or of OpenAI's."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

import triptych
from serving.errors import Reason
from tests.faults.questions import Question
from triptych.errors import GATEWAY_UNAVAILABLE

RETRIES = 2
"""Of OpenAI's client, by default."""

_REASONS = {reason.name for reason in Reason}
_WAITING = {reason.name for reason in Reason if reason.value.waits}
_OTHER_NAMES = {"context_length_exceeded": Reason.PROMPT_TOO_LONG.name}


@dataclass
class Reply:
    """What has come of a request so far.

    Attributes:
        attempts: How often it was sent.
        text: Of the answer.
        token_ids: Of the answer; over HTTP there are none.
        finished: Whether the answer is complete.
        reason: Of the error that ended it.
        broken: Whether the connection broke.
        typed: Whether the error has a documented reason, and the delay that this promises.
        detail: The error's words.
    """

    attempts: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finished: bool = False
    reason: str = ""
    broken: bool = False
    typed: bool = False
    detail: str = ""

    def begin(self) -> None:
        """Note another attempt."""
        attempts = self.attempts + 1
        self.__init__(attempts=attempts)  # type: ignore[misc]  # what an earlier attempt left is of no use


class Door(Protocol):
    """One client's way to the gateways."""

    name: str

    async def ask(self, question: Question, request_id: str, reply: Reply, seconds: float) -> None:
        """Send a question and fill in the reply as it comes; what goes wrong is put there, too."""

    async def close(self) -> None:
        """Close its connections."""


@functools.cache  # it reads all certificates of the system, which takes longer than a request
def tls_context(ca: Path | None) -> ssl.SSLContext:
    """For HTTP clients that trust a CA, or the system's."""
    return ssl.create_default_context(cafile=ca)


_REPLY: ContextVar[Reply] = ContextVar("reply")


class _Counted(triptych.AsyncClient):
    """Our client, whose attempts are counted in the reply of the call."""

    async def _attempt(self, *words: Any) -> AsyncGenerator[triptych.Event, None]:
        _REPLY.get().begin()
        async with contextlib.aclosing(super()._attempt(*words)) as events:
            async for event in events:
                yield event


class GrpcDoor:
    """Our own client, with its own retries.

    Args:
        addresses: Of the gateways.
        key: API key; empty: none.
        ca: Has signed the gateways' certificates; None: plain text.
    """

    name = "grpc"

    def __init__(self, addresses: Sequence[str], key: str = "", ca: Path | None = None) -> None:
        self._client = _Counted(addresses, api_key=key, tls=None if ca is None else triptych.Tls(ca))

    async def ask(self, question: Question, request_id: str, reply: Reply, seconds: float) -> None:
        """Send a question."""
        _REPLY.set(reply)
        options: dict[str, Any] = {"max_tokens": question.max_tokens, "ignore_eos": True, "request_id": request_id}
        try:
            async with contextlib.aclosing(self._client.chat(question.message(), timeout=seconds, **options)) as events:
                async for event in events:
                    if isinstance(event, triptych.Delta):
                        reply.text += event.text
                        reply.token_ids += event.token_ids
                    elif isinstance(event, triptych.Finished):
                        reply.finished = True
        except triptych.TriptychError as error:
            _note(reply, error)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _note(reply: Reply, error: triptych.TriptychError) -> None:
    reply.reason, reply.detail = error.reason, error.message
    reply.broken = error.reason == GATEWAY_UNAVAILABLE
    reply.typed = error.reason in _REASONS and (error.reason not in _WAITING or error.retry_after is not None)
    if error.reason == Reason.INTERNAL.name:
        reply.typed = False


class HttpDoor:
    """A client of the OpenAI API.

    Args:
        addresses: URLs of the gateways.
        stream: Whether answers are streamed.
        key: API key; empty: none.
        ca: Has signed the gateways' certificates, if they are not in plain text.
    """

    def __init__(self, addresses: Sequence[str], *, stream: bool, key: str = "", ca: Path | None = None) -> None:
        self.name = "http stream" if stream else "http"
        self._addresses = addresses
        self._stream = stream
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(limits=limits, headers=headers, trust_env=False, verify=tls_context(ca))
        self._turn = 0

    async def ask(self, question: Question, request_id: str, reply: Reply, seconds: float) -> None:
        """Send a question; tried again as OpenAI's client does: broken connections, 408, 409, 429 and from 500 on."""
        try:
            async with asyncio.timeout(seconds):
                await self._attempts(question, request_id, reply)
        except TimeoutError:
            reply.reason, reply.detail, reply.typed = Reason.DEADLINE_EXCEEDED.name, "the client's own time-out", True

    async def _attempts(self, question: Question, request_id: str, reply: Reply) -> None:
        for attempt in range(RETRIES + 1):
            reply.begin()
            address = self._addresses[self._turn % len(self._addresses)]
            delay = 0.5 * 2**attempt
            again = False
            try:
                async with self._client.stream(
                    "POST",
                    f"{address}/v1/chat/completions",
                    json=question.body(stream=self._stream),
                    headers={"x-request-id": request_id},
                    timeout=None,  # of the whole: above
                ) as response:
                    if response.status_code == httpx.codes.OK:
                        await self._read(response, reply)
                        return
                    said = json.loads(await response.aread())["error"]
                    delay = self._refused(response, said, reply) or delay
                    again = response.status_code in (408, 409, 429) or response.status_code >= 500
            except httpx.TransportError as error:
                reply.broken, reply.reason, reply.detail = True, "BROKEN", f"{type(error).__name__}: {error}"
                again = not reply.text
            except (ValueError, KeyError, TypeError) as error:
                reply.reason, reply.detail = "UNREADABLE", f"{type(error).__name__}: {error}"
                return
            self._turn += 1
            if not again or attempt == RETRIES:
                return
            await asyncio.sleep(delay)

    def _refused(self, response: httpx.Response, said: dict[str, str], reply: Reply) -> float | None:
        """Note an error. Returns its delay."""
        given = response.headers.get("retry-after")
        reply.reason, reply.detail = _reason(said), f"{response.status_code}: {said['message']}"
        reply.typed = reply.reason in _REASONS - {Reason.INTERNAL.name} and (
            reply.reason not in _WAITING or given is not None
        )
        return None if given is None else float(given)

    async def _read(self, response: httpx.Response, reply: Reply) -> None:
        if not self._stream:
            answer = json.loads(await response.aread())
            reply.text = answer["choices"][0]["message"]["content"]
            reply.finished = True
            return
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                reply.finished = True
            elif line.startswith("data: "):
                said = json.loads(line[len("data: ") :])
                if "error" in said:
                    reply.reason, reply.detail = _reason(said["error"]), said["error"]["message"]
                    reply.typed = reply.reason in _REASONS - {Reason.INTERNAL.name}
                    return
                for choice in said["choices"]:
                    reply.text += choice["delta"].get("content") or ""
        if not reply.finished:
            reply.broken, reply.reason, reply.detail = True, "BROKEN", "the stream ended before the answer"

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


def _reason(error: dict[str, str]) -> str:
    return _OTHER_NAMES.get(error["code"], error["code"].upper())
