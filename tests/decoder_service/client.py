"""Calls a decoder as the gateway does, with the protocol's messages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
import numpy as np
from grpc._cython.cygrpc import InternalError
from numpy.typing import NDArray

from decoder_service.chat import Layout, Message, Text
from serving.bundle import Bundle
from serving.errors import ServiceError
from serving.status import from_rpc_error
from tests.decoder_service.cases import TOKENS, Case
from tests.decoder_service.conftest import Running
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2, tensor_pb2, vision_pb2

GREEDY = chat_pb2.GenerationOptions(temperature=0, max_tokens=TOKENS, return_prompt_token_ids=True)
# The small model's answer to "text alone" is longer than that; no test waits for all of it.
ENDLESS = chat_pb2.GenerationOptions(temperature=0, max_tokens=2000)


def wire_messages(messages: Iterable[Message]) -> list[chat_pb2.Message]:
    """A conversation on the wire, media named by digest."""
    sent = []
    for message in messages:
        parts = []
        for part in message.parts:
            if isinstance(part, Text):
                parts.append(chat_pb2.Part(text=part.text))
            else:
                parts.append(chat_pb2.Part(**{part.kind.value: media_pb2.Media(digest=part.digest)}))
        sent.append(chat_pb2.Message(role=chat_pb2.Role.Value(f"ROLE_{message.role.name}"), parts=parts))
    return sent


def wire_layout(layout: Layout) -> media_pb2.MediaLayout:
    """A layout on the wire."""
    t, h, w = layout.grid
    return media_pb2.MediaLayout(
        kind=media_pb2.MediaKind.Value(f"MEDIA_KIND_{layout.medium.kind.name}"),
        digest=layout.medium.digest,
        grid_thw=media_pb2.GridThw(t=t, h=h, w=w),
        token_count=layout.token_count,
        timestamps=layout.timestamps,
    )


def open_request(case: Case, generation: chat_pb2.GenerationOptions = GREEDY) -> decoder_pb2.GenerateRequest:
    """The opening of a conversation."""
    opening = decoder_pb2.GenerateOpen(request_id="r-1", messages=wire_messages(case.messages), generation=generation)
    return decoder_pb2.GenerateRequest(open=opening)


class Features:
    """The features of a case as the gateway relays them; tests change them to cause errors."""

    def __init__(self, case: Case, bundle: Bundle) -> None:
        self.headers = [
            vision_pb2.EncodeHeader(
                layout=wire_layout(layout),
                features=tensor_pb2.TensorSpec(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=rows.shape),
                encoder_fingerprint=bundle.encoder_fingerprint,
            )
            for layout, rows in zip(case.layouts, case.features, strict=True)
        ]
        self.rows = list(case.features)

    def header(self, index: int) -> decoder_pb2.GenerateRequest:
        """The header of one medium."""
        return decoder_pb2.GenerateRequest(
            header=decoder_pb2.FeatureHeader(media_index=index, header=self.headers[index])
        )

    def chunks(self, index: int, rows: NDArray[np.generic] | None = None) -> Iterator[decoder_pb2.GenerateRequest]:
        """The chunks of one medium, small ones."""
        data = (self.rows[index] if rows is None else rows).data.cast("B")
        for offset in range(0, len(data), 5000):
            chunk = tensor_pb2.TensorChunk(offset=offset, data=bytes(data[offset : offset + 5000]))
            yield decoder_pb2.GenerateRequest(chunk=decoder_pb2.FeatureChunk(media_index=index, chunk=chunk))

    def all(self, needed: Iterable[int]) -> Iterator[decoder_pb2.GenerateRequest]:
        """Headers and chunks of the needed media, interleaved."""
        streams = [iter([self.header(index), *self.chunks(index)]) for index in needed]
        for turn in itertools.zip_longest(*streams):
            yield from (message for message in turn if message is not None)


Call = grpc.aio.StreamStreamCall


@contextlib.asynccontextmanager
async def generate(running: Running, deadline: float = 60, wait_for_ready: bool = False) -> AsyncIterator[Call]:
    """A call that is cancelled at the end of the block."""
    call = running.stub.Generate(timeout=deadline, wait_for_ready=wait_for_ready)
    try:
        yield call
    finally:
        call.cancel()


async def opened(call: Call, request: decoder_pb2.GenerateRequest) -> list[int]:
    """Send the opening; returns the needed media."""
    await call.write(request)
    response = await call.read()
    if response is grpc.aio.EOF:
        await rest_of(call)
    assert response.WhichOneof("payload") == "media_needed"
    return list(response.media_needed.media_indices)


async def rest_of(call: Call) -> list[chat_pb2.ChatEvent]:
    """The remaining events. Raises the error of a failed call."""
    events = []
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    return events


async def send(call: Call, messages: Iterable[decoder_pb2.GenerateRequest]) -> None:
    """Write messages. They are dropped if the call has ended; `rest_of` raises its error.

    Written below `call.write`, which replaces the status of a call that ends during a write by an INTERNAL of its
    own (github.com/grpc/grpc/issues/36066).
    """
    with contextlib.suppress(InternalError):
        for message in messages:
            await call._cython_call.send_serialized_message(message.SerializeToString())


async def done_sending(call: Call) -> None:
    """Close the caller's side."""
    with contextlib.suppress(InternalError, asyncio.InvalidStateError, grpc.RpcError):
        await call.done_writing()


class Answer:
    """The events of one answer."""

    def __init__(self, events: list[chat_pb2.ChatEvent]) -> None:
        self.started, *self.deltas, self.finished = events
        assert self.started.WhichOneof("event") == "started"
        assert self.finished.WhichOneof("event") == "finished"
        self.token_ids = [token for event in self.deltas for token in event.delta.token_ids]
        self.text = "".join(event.delta.text for event in self.deltas)


async def answer(
    running: Running, case: Case, bundle: Bundle, generation: chat_pb2.GenerationOptions = GREEDY
) -> Answer:
    """Send a request as the gateway does; returns its answer."""
    async with generate(running) as call:
        needed = await opened(call, open_request(case, generation))
        await send(call, Features(case, bundle).all(needed))
        await done_sending(call)
        return Answer(await rest_of(call))


async def refused(
    running: Running, opening: decoder_pb2.GenerateRequest, messages: Iterable[decoder_pb2.GenerateRequest] = ()
) -> ServiceError:
    """The error of a call."""
    async with generate(running) as call:
        try:
            await opened(call, opening)
            await send(call, messages)
            await done_sending(call)
            await rest_of(call)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    raise AssertionError("the call was not refused")


async def still_works(running: Running, case: Case) -> None:
    """Check that a request succeeds, and that earlier ones hold no resources."""
    # The channel watches the server's health itself, and may learn later than the test that it is SERVING again.
    async with asyncio.timeout(20), generate(running, wait_for_ready=True) as call:
        await opened(call, open_request(case, chat_pb2.GenerationOptions(temperature=0, max_tokens=2)))
        events = await rest_of(call)
    assert events[-1].WhichOneof("event") == "finished"
    admission = running.service._decoder.admission  # type: ignore[union-attr]
    assert admission.held_bytes == 0


async def until_empty(running: Running) -> None:
    """Wait until the server has ended all requests."""
    admission = running.service._decoder.admission  # type: ignore[union-attr]
    async with asyncio.timeout(20):
        while admission.inside:  # noqa: ASYNC110  # the server has no event for it
            await asyncio.sleep(0.01)


async def first_delta(call: Call) -> None:
    """Read up to the first delta."""
    while (await call.read()).event.WhichOneof("event") != "delta":
        pass
