"""From the events of an answer to OpenAI's JSON, whole or in chunks."""

from __future__ import annotations

import json
import time
from collections import defaultdict
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

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
"""Made once: `json.dumps` with these arguments makes one for each chunk."""


def usage_of(usage: chat_pb2.Usage) -> dict[str, Any]:
    """Token counts in the JSON."""
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


def end_of(finished: chat_pb2.Finished) -> dict[str, Any]:
    """How an answer ended, in a choice. `finish_limit` is Triptych's addition: the limit that ended it."""
    limit = _LIMITS.get(finished.limit)
    return {"finish_reason": _REASONS.get(finished.reason), **({} if limit is None else {"finish_limit": limit})}


def line_of(chunk: dict[str, Any]) -> bytes:
    """A chunk as an event of `text/event-stream`."""
    return b"data: " + _JSON.encode(chunk).encode() + b"\n\n"


def total_usage(finished: Mapping[int, chat_pb2.Finished], choices: int) -> chat_pb2.Usage:
    """What a request used with all its answers.

    Args:
        finished: The end of each answer, by its number.
        choices: Answers to one prompt, whose tokens are counted once: as its first answer had them.
    """
    total = chat_pb2.Usage()
    for number, end in finished.items():
        total.completion_tokens += end.usage.completion_tokens
        total.reasoning_tokens += end.usage.reasoning_tokens
        if number % choices == 0:
            total.prompt_tokens += end.usage.prompt_tokens
            total.media_tokens += end.usage.media_tokens
            total.cached_tokens += end.usage.cached_tokens
    return total


class _Choice:
    """One answer, collected from its events."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.calls = AnswerCalls()
        self.scored: list[dict[str, Any]] = []


class Completion:
    """The answers to one request on their way to JSON.

    Args:
        request_id: The request's id.
        include_usage: Whether a stream ends with the usage.
        logprobs: Whether the client asked for log probabilities.
        reasoning: Whether the client wants what the model thinks.
        max_tokens: `max_tokens` of the request, if it is set.
        choices: How many answers there are.
    """

    def __init__(
        self,
        request_id: str,
        *,
        include_usage: bool = False,
        logprobs: bool = False,
        reasoning: bool = True,
        max_tokens: int | None = None,
        choices: int = 1,
    ) -> None:
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._reasoning = reasoning
        self._max_tokens = max_tokens
        self._id = f"chatcmpl-{request_id}"
        self._created = int(time.time())
        self._model = ""
        self._choices = choices
        self._finished: dict[int, chat_pb2.Finished] = {}

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
        """The answers in one piece."""
        collected: defaultdict[int, _Choice] = defaultdict(_Choice)  # their number is checked by the decoder
        additions: dict[str, Any] = {}
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    additions = self._started(event.started)
                case "delta":
                    choice = collected[event.choice]
                    choice.text += event.delta.text
                    choice.reasoning += event.delta.reasoning
                    choice.scored += content(event.delta.logprobs)
                case "tool_call":
                    collected[event.choice].calls.add(event.tool_call)
                case "finished":
                    self._finished[event.choice] = event.finished
        choices = [self._whole(number, collected[number]) for number in range(self._choices)]
        usage = usage_of(total_usage(self._finished, self._choices))
        return self._frame("chat.completion", choices, usage=usage, **additions)

    def _whole(self, number: int, choice: _Choice) -> dict[str, Any]:
        finished = self._finished[number]
        reasoning = choice.reasoning if self._reasoning else ""
        return {
            "index": number,
            "message": {
                "role": "assistant",
                # OpenAI's is null where the answer is calls alone.
                "content": choice.text or (None if choice.calls.whole else ""),
                "refusal": None,
                **choice.calls.whole,
                **({"reasoning_content": reasoning} if reasoning else {}),
            },
            "logprobs": {"content": choice.scored, "refusal": None} if self._logprobs else None,
            **end_of(finished),
        }

    def chunks(self, event: chat_pb2.ChatEvent) -> Iterator[bytes]:
        """The chunks that an event makes, as lines of `text/event-stream`; those of the last end with `[DONE]`.

        Progress makes none.
        """
        match event.WhichOneof("event"):
            case "started":
                more = self._started(event.started)
                for number in range(self._choices):
                    yield self._chunk(number, {"role": "assistant", "content": ""}, more=more)
                    more = {}
            case "delta":
                scored = content(event.delta.logprobs) if self._logprobs else []
                told = {}
                if event.delta.reasoning and self._reasoning:
                    told["reasoning_content"] = event.delta.reasoning
                if event.delta.text or (scored and not told):  # a token's log probability does not wait for its text
                    told["content"] = event.delta.text
                if told:
                    yield self._chunk(event.choice, told, scored=scored)
            case "tool_call":
                yield self._chunk(event.choice, call_delta(event.tool_call))
            case "finished":
                self._finished[event.choice] = event.finished
                yield self._chunk(event.choice, {}, finished=event.finished)
                if len(self._finished) == self._choices:
                    if self._include_usage:
                        usage = usage_of(total_usage(self._finished, self._choices))
                        yield line_of(self._frame("chat.completion.chunk", [], usage=usage))
                    yield DONE

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        scored: Sequence[dict[str, Any]] = (),
        finished: chat_pb2.Finished | None = None,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> bytes:
        logprobs = {"content": scored, "refusal": None} if scored else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}
        if finished is not None:
            choice |= end_of(finished)
        usage = {"usage": None} if self._include_usage else {}
        return line_of(self._frame("chat.completion.chunk", [choice], **usage, **more))
