"""`POST /v1/chat/completions`."""

from __future__ import annotations

from functools import partial

from gateway.conductor import Conductor
from gateway.http.answer import sending
from gateway.http.body import Bodies
from gateway.http.completions import Completion
from gateway.http.endpoint import Endpoint, Work
from gateway.http.schema import CompletionRequest
from gateway.http.stream import Pace
from gateway.http.translate import JsonNames, asked_tokens, parse, to_chat
from gateway.http.unserved import ignored_fields
from gateway.keys.access import Admitted
from gateway.retry import Deadline
from serving.connections import Places
from vlm.v1 import gateway_pb2

_Read = tuple[CompletionRequest, gateway_pb2.ChatRequest]


class ChatCompletions(Endpoint[_Read]):
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
        request = parse(body)
        ignored = ignored_fields(request)
        return (request, to_chat(request, request_id)), ignored

    def work(self, read: _Read, deadline: Deadline, admitted: Admitted) -> Work:
        """See `Endpoint`."""
        request, chat = read
        make = partial(
            Completion,
            include_usage=bool(request.stream_options and request.stream_options.include_usage),
            logprobs=bool(request.logprobs),
            reasoning=request.include_reasoning is not False,
            max_tokens=asked_tokens(request),
            choices=request.n or 1,
        )
        answer = self._conductor.chat(chat, request_id=chat.request_id, deadline=deadline, tenant=admitted.tenant)
        events = admitted.client.metered(answer)
        return sending(events, make, stream=bool(request.stream), pace=self._pace, names=JsonNames(request))
