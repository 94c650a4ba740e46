"""`POST /v1/completions`, as vLLM has it: raw prompts, and the legacy shape of OpenAI's answers.

Several prompts are several requests to the decoder tier, and one to the client: choice `i` of prompt `p` is number
`p * n + i`. If one fails, all do.
"""

from __future__ import annotations

import codecs
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any

from gateway.conductor import Conductor
from gateway.http.answer import sending
from gateway.http.body import Bodies
from gateway.http.completions import DONE, end_of, line_of, total_usage, usage_of
from gateway.http.endpoint import Endpoint, Work
from gateway.http.logprobs import content
from gateway.http.schema import TextCompletionRequest
from gateway.http.stream import Pace
from gateway.http.translate import PromptNames, to_prompts, validated
from gateway.http.unserved import ignored_fields
from gateway.keys.access import Admitted
from gateway.retry import Deadline
from serving.connections import Places
from serving.tasks import merged
from vlm.v1 import chat_pb2, gateway_pb2

_AT_ONCE = 4
"""Prompts of one request that are answered at the same time: a list must not fill the decoder's queue."""

_Read = tuple[TextCompletionRequest, list[gateway_pb2.ChatRequest]]


class TextCompletions(Endpoint[_Read]):
    """The endpoint.

    Args:
        conductor: Does the work.
        seconds: Time for a request.
        bodies: Receives its body.
        places: Requests that may run at once.
        pace: How long a stream may be silent.
    """

    def __init__(self, conductor: Conductor, *, seconds: float, bodies: Bodies, places: Places, pace: Pace) -> None:
        super().__init__(conductor, seconds=seconds, bodies=bodies, places=places)
        self._pace = pace

    def read(self, body: bytes, request_id: str) -> tuple[_Read, list[str]]:
        """See `Endpoint`."""
        request = validated(body, TextCompletionRequest)
        ignored = ignored_fields(request)
        return (request, to_prompts(request, request_id)), ignored

    def work(self, read: _Read, deadline: Deadline, admitted: Admitted) -> Work:
        """See `Endpoint`."""
        request, prompts = read
        choices = request.n or 1
        answers = [
            _numbered(
                admitted.client.metered(
                    self._conductor.chat(
                        prompt, request_id=prompt.request_id, deadline=deadline, tenant=admitted.tenant
                    )
                ),
                number * choices,
            )
            for number, prompt in enumerate(prompts)
        ]

        events = merged(answers, at_once=max(1, _AT_ONCE // choices))
        make = partial(_TextCompletion, request=request, answers=len(prompts) * choices)
        return sending(events, make, stream=bool(request.stream), pace=self._pace, names=PromptNames(request))


async def _numbered(
    events: AsyncGenerator[chat_pb2.ChatEvent, None], first: int
) -> AsyncGenerator[chat_pb2.ChatEvent, None]:
    """The events of a prompt, its choices numbered from `first` on."""
    async with contextlib.aclosing(events):
        async for event in events:
            event.choice += first
            yield event


class _TextCompletion:
    """The answers to one request on their way to JSON.

    Args:
        request_id: The request's id.
        request: What was asked.
        answers: How many there are.
    """

    def __init__(self, request_id: str, request: TextCompletionRequest, *, answers: int) -> None:
        self._id = f"cmpl-{request_id}"
        self._created = int(time.time())
        self._model = ""
        self._include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._scored = request.logprobs is not None
        self._answers = answers
        self._offsets: defaultdict[int, _Offset] = defaultdict(_Offset)
        self._choices = request.n or 1
        self._finished: dict[int, chat_pb2.Finished] = {}

    def _frame(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        head = {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}
        return {**head, "choices": choices, **more}

    async def whole(self, events: AsyncIterator[chat_pb2.ChatEvent]) -> dict[str, Any]:
        """The answers in one piece."""
        texts: defaultdict[int, str] = defaultdict(str)  # their number is checked by the decoder
        positions: defaultdict[int, list[chat_pb2.PositionLogprobs]] = defaultdict(list)
        async for event in events:
            match event.WhichOneof("event"):
                case "started":
                    self._model = event.started.model
                case "delta":
                    texts[event.choice] += event.delta.text
                    positions[event.choice] += event.delta.logprobs
                case "finished":
                    self._finished[event.choice] = event.finished
        choices = [
            self._choice(number, texts[number], positions[number], self._finished[number])
            for number in range(self._answers)
        ]
        return self._frame(choices, usage=usage_of(self._usage()))

    def chunks(self, event: chat_pb2.ChatEvent) -> Iterator[bytes]:
        """The chunks that an event makes, as lines of `text/event-stream`; those of the last end with `[DONE]`."""
        match event.WhichOneof("event"):
            case "started":
                self._model = event.started.model
            case "delta":
                positions = event.delta.logprobs if self._scored else []
                if event.delta.text or positions:
                    yield self._chunk(self._choice(event.choice, event.delta.text, positions, None))
            case "finished":
                self._finished[event.choice] = event.finished
                yield self._chunk(self._choice(event.choice, "", [], event.finished))
                if len(self._finished) == self._answers:
                    if self._include_usage:
                        yield line_of(self._frame([], usage=usage_of(self._usage())))
                    yield DONE

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return line_of(self._frame([choice], **({"usage": None} if self._include_usage else {})))

    def _choice(
        self,
        number: int,
        text: str,
        positions: Sequence[chat_pb2.PositionLogprobs],
        finished: chat_pb2.Finished | None,
    ) -> dict[str, Any]:
        return {
            "index": number,
            "text": text,
            "logprobs": self._offsets[number].legacy(positions) if self._scored else None,
            **({"finish_reason": None} if finished is None else end_of(finished)),
        }

    def _usage(self) -> chat_pb2.Usage:
        return total_usage(self._finished, self._choices)


class _Offset:
    """Where the tokens of one answer begin in its text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def legacy(self, positions: Sequence[chat_pb2.PositionLogprobs]) -> dict[str, Any] | None:
        """Log probabilities in the legacy shape: four lists side by side."""
        scored = content(positions)
        if not scored:
            return None
        offsets = []
        for token in scored:
            offsets.append(self._characters)
            self._characters += len(self._decoder.decode(bytes(token["bytes"])))
        return {
            "tokens": [token["token"] for token in scored],
            "token_logprobs": [token["logprob"] for token in scored],
            "top_logprobs": [{top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in scored],
            "text_offset": offsets,
        }
