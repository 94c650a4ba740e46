"""A gateway that plays a script, for tests of its clients."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
from grpc_status import rpc_status

from serving.errors import ServiceError
from serving.status import to_proto
from serving.transport import INSECURE, Credentials, server_options
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc, media_pb2

SECONDS = 60
"""Bound of every wait."""

Context = grpc.ServicerContext
Script = Callable[[gateway_pb2.ChatRequest, Context], Iterator[chat_pb2.ChatEvent]]


@dataclass
class Scripted(gateway_pb2_grpc.GatewayServicer):
    """Plays `chat` and answers `count` and `models`; keeps the requests."""

    chat: Script
    count: gateway_pb2.CountTokensResponse = field(default_factory=gateway_pb2.CountTokensResponse)
    models: tuple[str, ...] = ("m",)
    address: str = ""
    chats: list[gateway_pb2.ChatRequest] = field(default_factory=list)
    counts: list[gateway_pb2.CountTokensRequest] = field(default_factory=list)
    count_errors: list[ServiceError] = field(default_factory=list)

    def Chat(self, request: gateway_pb2.ChatRequest, context: Context) -> Iterator[chat_pb2.ChatEvent]:
        self.chats.append(request)
        yield from self.chat(request, context)

    def CountTokens(self, request: gateway_pb2.CountTokensRequest, context: Context) -> gateway_pb2.CountTokensResponse:
        self.counts.append(request)
        if self.count_errors:
            fail(context, self.count_errors.pop(0))
        return self.count

    def ListModels(self, request: gateway_pb2.ListModelsRequest, context: Context) -> gateway_pb2.ListModelsResponse:
        return gateway_pb2.ListModelsResponse(models=[chat_pb2.Model(id=name) for name in self.models])


@contextlib.contextmanager
def playing(
    chat: Script,
    count: gateway_pb2.CountTokensResponse | None = None,
    *,
    max_message_bytes: int = 1 << 27,
    credentials: Credentials = INSECURE,
    port: int = 0,
) -> Iterator[Scripted]:
    """Serve a script on a port; 0 takes a free one."""
    servicer = Scripted(chat, count or gateway_pb2.CountTokensResponse())
    server = grpc.server(
        futures.ThreadPoolExecutor(4), options=list(server_options(max_message_bytes=max_message_bytes))
    )
    gateway_pb2_grpc.add_GatewayServicer_to_server(servicer, server)
    if credentials.server is None:
        port = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        port = server.add_secure_port(f"127.0.0.1:{port}", credentials.server.grpc())
    servicer.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(None).wait(SECONDS)


def accept(context: Context, request_id: str = "r") -> None:
    """Send the initial metadata, as the gateway does when it has the whole request."""
    context.send_initial_metadata((("x-request-id", request_id),))


def fail(context: Context, error: ServiceError) -> None:
    """End the call with an error and its details, as the gateway does."""
    context.abort_with_status(rpc_status.to_status(to_proto(error)))


def wait(event: threading.Event) -> None:
    """Wait for an event of the test."""
    assert event.wait(SECONDS), "the test never came so far"


def answered(
    text: str = "A cat.",
    media: tuple[media_pb2.MediaLayout, ...] = (),
    progress: tuple[chat_pb2.Progress, ...] = (),
    reasoning: tuple[str, ...] = (),
    finished: chat_pb2.Finished | None = None,
) -> Iterator[chat_pb2.ChatEvent]:
    """The events of an answer in one delta, behind one for each piece of its reasoning."""
    started = chat_pb2.Started(request_id="r", model="m", prompt_tokens=9, media_tokens=4, media=media)
    yield chat_pb2.ChatEvent(started=started)
    for event in progress:
        yield chat_pb2.ChatEvent(progress=event)
    for piece in reasoning:
        yield chat_pb2.ChatEvent(delta=chat_pb2.Delta(reasoning=piece, token_ids=[0]))
    yield chat_pb2.ChatEvent(delta=chat_pb2.Delta(text=text, token_ids=[1]))
    yield chat_pb2.ChatEvent(finished=finished or chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_STOP))


def image_layout(given: tuple[int, int], used: tuple[int, int]) -> media_pb2.MediaLayout:
    """What an image of this size (width, height) becomes with patches of 16 x 16 pixels, four to a token."""
    columns, rows = used[0] // 16, used[1] // 16
    return media_pb2.MediaLayout(
        kind=media_pb2.MEDIA_KIND_IMAGE,
        grid_thw=media_pb2.GridThw(t=1, h=rows, w=columns),
        token_count=rows * columns // 4,
        size_given=media_pb2.Size(width=given[0], height=given[1]),
        size_used=media_pb2.Size(width=used[0], height=used[1]),
    )


def video_layout(given: tuple[int, int], used: tuple[int, int]) -> media_pb2.MediaLayout:
    """What a video of four frames of this size becomes."""
    columns, rows = used[0] // 16, used[1] // 16
    return media_pb2.MediaLayout(
        kind=media_pb2.MEDIA_KIND_VIDEO,
        grid_thw=media_pb2.GridThw(t=2, h=rows, w=columns),
        token_count=2 * rows * columns // 4,
        timestamps=[0.25, 1.25],
        frame_times=[0, 0.5, 1, 1.5],
        size_given=media_pb2.Size(width=given[0], height=given[1]),
        size_used=media_pb2.Size(width=used[0], height=used[1]),
    )
