"""From the events of an answer to OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.http.logprobs import content
from gateway.http.media import described
from gateway.http.tools import AnswerCalls, call_delta
from vlm.v1 import chat_pb2

_REASONS = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_LIMITS = {
    chat_pb2.FINISH_LIMIT_MAX_TOKENS: "max_tokens",
    chat_pb2.FINISH_LIMIT_SERVER: "server",
    chat_pb2.FINISH_LIMIT_CONTEXT: "context",
    chat_pb2.FINISH_LIMIT_KV_CACHE: "kv_cache",
    chat_pb2.FINISH_LIMIT_DEADLINE: "deadline",
    chat_pb2.FINISH_LIMIT_REPETITION: "repetition",
}

DONE = b"data: [DONE]\n\n"


def _usage(usage: chat_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _media(started: chat_pb2.Started) -> dict[str, Any]:
    """Triptych's addition to the JSON: what each medium of the conversation became, in order of appearance."""
    return {"media": [described(layout) for layout in started.media]} if started.media else {}


def _limit(finished: chat_pb2.Finished) -> dict[str, Any]:
    """Triptych's addition to a choice: which limit ended the answer."""
    limit = _LIMITS.get(finished.limit)
    return {} if limit is None else {"finish_limit": limit}


class Completion:
    """One answer on its way to JSON.

    Args:
        request_id: The request's id.
        logprobs: Whether the client asked for log probabilities.
        reasoning: Whether the client wants what the model thinks.
        max_tokens: `max_tokens` of the request, if it is set.
    """

    def __init__(
        self, request_id: str, *, logprobs: bool = False, reasoning: bool = True, max_tokens: int | None = None
    ) -> None:
        self._logprobs = logprobs
        self._reasoning = reasoning
        self._max_tokens = max_tokens
        self._id = f"chatcmpl-{request_id}"
        self._created = int(time.time())
        self._model = ""

    def _frame(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self._created, "model": self._model}
        return {**head, "choices": choices, **more}

    def _started(self, started: chat_pb2.Started) -> dict[str, Any]:
        """Triptych's additions to the JSON that are known from the beginning.

        What each medium became, and `max_tokens` where it was cut.
        """
        self._model = started.model
        cut = self._max_tokens is not None and 0 < started.max_tokens < self._max_tokens
        return {**_media(started), **({"max_tokens": started.max_tokens} if cut else {})}

    async def whole(self, events: AsyncIterator[chat_pb2.ChatEvent]) -> dict[str, Any]:
        """The answer in one piece."""
        text: list[str] = []
        thoughts: list[str] = []
        calls = AnswerCalls()
        scored: list[dict[str, Any]] = []
        finished = chat_pb2.Finished()
        additions: dict[str, Any] = {}
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    additions = self._started(event.started)
                case "delta":
                    text.append(event.delta.text)
                    thoughts.append(event.delta.reasoning)
                    scored += content(event.delta.logprobs)
                case "tool_call":
                    calls.add(event.tool_call)
                case "finished":
                    finished = event.finished
        reasoning = "".join(thoughts) if self._reasoning else ""
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                # OpenAI's is null where the answer is calls alone.
                "content": "".join(text) or (None if calls.whole else ""),
                "refusal": None,
                **calls.whole,
                **({"reasoning_content": reasoning} if reasoning else {}),
            },
            "logprobs": {"content": scored, "refusal": None} if self._logprobs else None,
            "finish_reason": _REASONS.get(finished.reason),
            **_limit(finished),
        }
        return self._frame("chat.completion", [choice], usage=_usage(finished.usage), **additions)

    def chunks(self, event: chat_pb2.ChatEvent, *, include_usage: bool) -> Iterator[bytes]:
        """The chunks that an event makes, as lines of `text/event-stream`; those of the last end with `[DONE]`.

        Progress makes none.
        """
        match event.WhichOneof("event"):
            case "started":
                head = {"role": "assistant", "content": ""}
                yield self._chunk(head, include_usage, more=self._started(event.started))
            case "delta":
                scored = content(event.delta.logprobs) if self._logprobs else []
                told = {}
                if event.delta.reasoning and self._reasoning:
                    told["reasoning_content"] = event.delta.reasoning
                if event.delta.text or (scored and not told):  # a token's log probability does not wait for its text
                    told["content"] = event.delta.text
                if told:
                    yield self._chunk(told, include_usage, scored=scored)
            case "tool_call":
                yield self._chunk(call_delta(event.tool_call), include_usage)
            case "finished":
                yield self._chunk({}, include_usage, finished=event.finished)
                if include_usage:
                    yield self._line(self._frame("chat.completion.chunk", [], usage=_usage(event.finished.usage)))
                yield DONE

    def _chunk(
        self,
        delta: dict[str, Any],
        include_usage: bool,
        *,
        scored: Sequence[dict[str, Any]] = (),
        finished: chat_pb2.Finished | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        logprobs = {"content": scored, "refusal": None} if scored else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if finished is not None:
            choice |= {"finish_reason": _REASONS.get(finished.reason), **_limit(finished)}
        usage = {"usage": None} if include_usage else {}
        return self._line(self._frame("chat.completion.chunk", [choice], **usage, **more))

    @staticmethod
    def _line(chunk: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
