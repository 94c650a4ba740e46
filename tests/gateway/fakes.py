"""Tiers without models, for the gateway's tests: the same behaviour in-process and as gRPC servers on the loopback.

`FakeVision` and `FakeDecoder` keep to the wire's rules and record what they see. A test makes them fail or wait by
their hooks. `InProcessVision` and `InProcessDecoder` are ports over them; `serve` puts them on a port.
`python -m tests.gateway.fakes vision|decoder …` runs one as a process that a test may kill.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.ports import CallEndedError, DecoderTier, GenerationCall, ReplicaCount, Route, VisionTier
from serving.errors import Code, Reason, ServiceError, invalid
from serving.interceptors import CallInterceptor
from serving.media import media_digest
from serving.tasks import cancel_and_wait
from serving.transport import INSECURE, Credentials, open_port
from vlm.v1 import (
    chat_pb2,
    decoder_pb2,
    decoder_pb2_grpc,
    media_pb2,
    tensor_pb2,
    vision_pb2,
    vision_pb2_grpc,
)

FINGERPRINT = "0" * 64
MODEL = "fake/model"


def down(message: str = "the replica goes down") -> ServiceError:
    """UNAVAILABLE, as a service says it."""
    return ServiceError(Code.UNAVAILABLE, "GOING_DOWN", message)


@dataclass
class EncodeCall:
    """One call of Encode, as the vision service saw it."""

    request: vision_pb2.EncodeRequest
    seconds: float
    sent: int = 0
    complete: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class FakeVision:
    """A vision service whose features are the file's own bytes, over and over: 4 tokens in `chunks` chunks."""

    def __init__(
        self, *, chunks: int = 4, chunk_bytes: int = 64, fingerprint: str = FINGERPRINT, max_pixels: int = 500
    ) -> None:
        # Its health service, where it is served; None: it has none.
        self.health: health.aio.HealthServicer | None = health.aio.HealthServicer()
        # What requests that name no bound get; part of what replicas must agree on.
        self.max_pixels = max_pixels
        # Sent as progress before each chunk, where it is set: patches that are done.
        self.progress: int | None = None
        self.chunks = chunks
        self.chunk_bytes = chunk_bytes
        self.fingerprint = fingerprint
        self.calls: list[EncodeCall] = []
        self.described: list[vision_pb2.EncodeRequest] = []
        self.called = asyncio.Event()
        # Awaited before the header (-1) and before each chunk; what it raises fails the call.
        self.hook: Callable[[EncodeCall, int], Awaitable[None]] | None = None

    def features(self, data: bytes) -> bytes:
        """The whole feature map of a file, as bytes."""
        size = self.chunks * self.chunk_bytes
        return (data * (size // len(data) + 1))[:size]

    def layout(self, request: vision_pb2.EncodeRequest) -> media_pb2.MediaLayout:
        """The layout of a file."""
        if not request.data.startswith(b"file"):
            raise invalid("data", "cannot be read as an image", reason=Reason.IMAGE_UNREADABLE)
        if request.options.min_pixels > 1000:
            raise invalid("options.min_pixels", "is over 1000")
        if request.settings_digest not in ("", str(self.max_pixels)):
            message = f"the settings are {self.max_pixels}, not {request.settings_digest}"
            raise ServiceError(Code.FAILED_PRECONDITION, "ENCODER_SETTINGS_DIFFER", message)
        grid = media_pb2.GridThw(t=1, h=4, w=4)
        return media_pb2.MediaLayout(
            kind=request.kind, digest=media_digest(request.data), grid_thw=grid, token_count=len(request.data)
        )

    async def encode(
        self, request: vision_pb2.EncodeRequest, seconds: float
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        """The call."""
        call = EncodeCall(request, seconds)
        self.calls.append(call)
        self.called.set()
        try:
            if self.hook:
                await self.hook(call, -1)
            layout = self.layout(request)
            features = self.features(request.data)
            spec = tensor_pb2.TensorSpec(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[4, len(features) // 16])
            yield vision_pb2.EncodeResponse(
                header=vision_pb2.EncodeHeader(layout=layout, features=spec, encoder_fingerprint=self.fingerprint)
            )
            for i in range(self.chunks):
                if self.hook:
                    await self.hook(call, i)
                if self.progress is not None:
                    progress = vision_pb2.EncodeProgress(patches_done=self.progress, patches_total=16)
                    yield vision_pb2.EncodeResponse(progress=progress)
                at = i * self.chunk_bytes
                chunk = tensor_pb2.TensorChunk(offset=at, data=features[at : at + self.chunk_bytes])
                yield vision_pb2.EncodeResponse(chunk=chunk)
                call.sent += 1
            call.complete = True
        finally:
            call.ended.set()

    def info(self) -> vision_pb2.EncoderInfo:
        """What is loaded."""
        return vision_pb2.EncoderInfo(
            model=MODEL,
            encoder_fingerprint=self.fingerprint,
            device="cpu",
            dtype=tensor_pb2.DATA_TYPE_FLOAT32,
            default_media=media_pb2.MediaOptions(max_pixels=self.max_pixels, max_video_pixels=900, max_frames=8),
            published_media=media_pb2.MediaOptions(max_pixels=4000, max_video_pixels=9000, max_frames=768),
            settings_digest=str(self.max_pixels),
        )


@dataclass
class GenerateCall:
    """One call of Generate, as the decoder saw it."""

    seconds: float
    open: decoder_pb2.GenerateOpen | None = None
    order: list[tuple[str, int]] = field(default_factory=list)
    features: dict[int, bytearray] = field(default_factory=dict)
    progress: list[int] = field(default_factory=list)
    half_closed: bool = False
    started: bool = False
    complete: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class FakeDecoder:
    """A decoder that answers with `words` once it has every feature that it lacks."""

    def __init__(self, *, words: tuple[str, ...] = ("A ", "red ", "circle."), fingerprint: str = FINGERPRINT) -> None:
        self.words = words
        # Its health service, where it is served; None: it has none.
        self.health: health.aio.HealthServicer | None = health.aio.HealthServicer()
        # What an answer consists of: text, and the log probabilities of the tokens that come with it.
        self.said: list[tuple[str, list[chat_pb2.PositionLogprobs]]] = [(word, []) for word in words]
        # What it thinks before.
        self.thoughts: tuple[str, ...] = ()
        # The tool calls behind it.
        self.called: tuple[chat_pb2.ToolCallDelta, ...] = ()
        # Whether every token has a log probability.
        self.scored = False
        # The limit that ends an answer, and the most tokens that it is told to have.
        self.limit: chat_pb2.FinishLimit.ValueType = chat_pb2.FINISH_LIMIT_UNSPECIFIED
        self.max_tokens = 0
        self.fingerprint = fingerprint
        self.cached: set[str] = set()
        # Whether `started` comes after the last header, as a real decoder sends it, or after the last feature.
        self.start_early = False
        self.calls: list[GenerateCall] = []
        self.counted: list[decoder_pb2.CountPromptTokensRequest] = []
        # Awaited at `open`, `read` (before each message is taken), `start`, `delta` and `finish`; what it raises
        # fails the call.
        self.hook: Callable[[GenerateCall, str], Awaitable[None]] | None = None

    def needed(self, opening: decoder_pb2.GenerateOpen) -> list[int]:
        """The numbers of the media that are not cached, one for each distinct file."""
        seen: set[tuple[str, str, bytes]] = set()
        numbers = []
        number = 0
        for message in opening.messages:
            for part in message.parts:
                which = part.WhichOneof("part")
                if which not in ("image", "video"):
                    continue
                digest = getattr(part, which).digest
                key = (which, digest, getattr(part, which).options.SerializeToString(deterministic=True))
                if key not in seen and digest not in self.cached:
                    numbers.append(number)
                seen.add(key)
                number += 1
        return numbers

    @staticmethod
    def _check(opening: decoder_pb2.GenerateOpen) -> None:
        if not opening.messages and not opening.HasField("prompt"):
            raise invalid("messages", "is empty; send at least one message")
        if opening.generation.top_p > 1:
            raise invalid("generation.top_p", "is over 1")
        if opening.model not in ("", MODEL):
            raise ServiceError(Code.NOT_FOUND, "MODEL_NOT_FOUND", f"model: {opening.model!r} is not served")

    async def generate(
        self, requests: AsyncIterator[decoder_pb2.GenerateRequest], seconds: float
    ) -> AsyncGenerator[decoder_pb2.GenerateResponse, None]:
        """The call."""
        call = GenerateCall(seconds)
        self.calls.append(call)
        try:
            call.open = (await anext(requests)).open
            await self._hook(call, "open")
            self._check(call.open)
            needed = self.needed(call.open)
            yield decoder_pb2.GenerateResponse(media_needed=decoder_pb2.MediaNeeded(media_indices=needed))
            missing = dict.fromkeys(needed, -1)
            started = chat_pb2.Started(
                request_id=call.open.request_id,
                model=MODEL,
                prompt_tokens=7,
                media_tokens=4,
                max_tokens=self.max_tokens,
            )
            starting = decoder_pb2.GenerateResponse(event=chat_pb2.ChatEvent(started=started))
            while any(missing.values()):
                if self.start_early and not call.started and -1 not in missing.values():
                    call.started = True
                    yield starting
                await self._hook(call, "read")
                request = await anext(requests, None)
                if request is None:
                    raise invalid("header", "the stream ended before all features had come")
                if request.WhichOneof("payload") == "header":
                    number = request.header.media_index
                    if request.header.header.encoder_fingerprint != self.fingerprint:
                        raise ServiceError(Code.FAILED_PRECONDITION, "ENCODER_MISMATCH", "the encoder is another one")
                    call.order.append(("header", number))
                    call.features[number] = bytearray()
                    shape = request.header.header.features.shape
                    missing[number] = shape[0] * shape[1] * 4
                elif request.WhichOneof("payload") == "progress":
                    call.progress.append(request.progress.progress.patches_done)
                else:
                    number = request.chunk.media_index
                    assert request.chunk.chunk.offset == len(call.features[number])
                    call.order.append(("chunk", number))
                    call.features[number] += request.chunk.chunk.data
                    missing[number] -= len(request.chunk.chunk.data)
            # Half-closed: nothing more may come.
            call.half_closed = await anext(requests, None) is None
            await self._hook(call, "start")
            if not call.started:
                yield starting
            async for event in self._answer(call):
                yield decoder_pb2.GenerateResponse(event=event)
            call.complete = True
        finally:
            call.ended.set()

    async def _answer(self, call: GenerateCall) -> AsyncIterator[chat_pb2.ChatEvent]:
        """Deltas, tool calls and the end of each answer."""
        likely = [chat_pb2.PositionLogprobs(chosen=chat_pb2.TokenLogprob(text="x", raw=b"x"))] if self.scored else []
        choices = range(1 if call.open is None else call.open.generation.n or 1)
        for thought in self.thoughts:
            delta = chat_pb2.Delta(reasoning=thought, token_ids=[0], logprobs=likely)
            yield chat_pb2.ChatEvent(delta=delta)
        for i, (word, logprobs) in enumerate(self.said):
            await self._hook(call, "delta")
            delta = chat_pb2.Delta(text=word, token_ids=[i], logprobs=logprobs or likely)
            for choice in choices:
                event = chat_pb2.ChatEvent(delta=delta, choice=choice)
                yield event
        for choice in choices[1:]:  # later answers say which they are
            event = chat_pb2.ChatEvent(delta=chat_pb2.Delta(text=f" ({choice})"), choice=choice)
            yield event
        for part in self.called:
            yield chat_pb2.ChatEvent(tool_call=part)
        await self._hook(call, "finish")
        usage = chat_pb2.Usage(
            prompt_tokens=7,
            completion_tokens=len(self.thoughts) + len(self.said),
            media_tokens=4,
            cached_tokens=2,
            reasoning_tokens=len(self.thoughts),
        )
        reason = chat_pb2.FINISH_REASON_TOOL_CALLS if self.called else chat_pb2.FINISH_REASON_STOP
        finished = chat_pb2.Finished(
            reason=chat_pb2.FINISH_REASON_LENGTH if self.limit else reason,
            usage=usage,
            timings=chat_pb2.Timings(queue_seconds=0.5),
            limit=self.limit,
        )
        for choice in reversed(choices):
            yield chat_pb2.ChatEvent(finished=finished, choice=choice)

    async def _hook(self, call: GenerateCall, stage: str) -> None:
        if self.hook:
            await self.hook(call, stage)

    def count(self, request: decoder_pb2.CountPromptTokensRequest) -> decoder_pb2.CountPromptTokensResponse:
        """Counts."""
        self.counted.append(request)
        media = sum(layout.token_count for layout in request.layouts)
        ids = [1, 2, 3] if request.return_token_ids else []
        return decoder_pb2.CountPromptTokensResponse(
            prompt_tokens=10 + media,
            media_tokens=media,
            token_ids=ids,
            token_texts=["a", "\\xe2", "<|im_end|>"] if request.return_token_texts else [],
            context_length=4096,
        )

    def detokenize(self, request: chat_pb2.DetokenizeRequest) -> chat_pb2.DetokenizeResponse:
        """The ids in words."""
        for index, token in enumerate(request.token_ids):
            if token > 1000:
                raise invalid(f"token_ids[{index}]", f"is {token}")
        return chat_pb2.DetokenizeResponse(text=" ".join(map(str, request.token_ids)))

    def model(self) -> chat_pb2.Model:
        """What is loaded."""
        return chat_pb2.Model(
            id=MODEL,
            family="qwen3_vl",
            context_length=4096,
            images=bool(self.fingerprint),
            encoder_fingerprint=self.fingerprint,
            thinks=True,
            recommended_sampling=chat_pb2.RecommendedSampling(temperature=0.6, top_p=1, top_k=20, repetition_penalty=1),
        )


class InProcessVision(VisionTier):
    """A tier of replicas in this process; each call goes to the next one."""

    def __init__(self, *replicas: FakeVision) -> None:
        self._replicas = replicas
        self._turn = 0
        self.available = len(replicas)

    @property
    def replicas(self) -> ReplicaCount:
        return ReplicaCount(self.available, len(self._replicas))

    def _next(self) -> FakeVision:
        self._turn += 1
        return self._replicas[(self._turn - 1) % len(self._replicas)]

    async def encode(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        async with contextlib.aclosing(self._next().encode(request, seconds)) as responses:
            async for response in responses:
                yield response

    async def describe(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> media_pb2.MediaLayout:
        replica = self._next()
        replica.described.append(request)
        return replica.layout(request)

    async def encoder(self, *, seconds: float, route: Route) -> vision_pb2.EncoderInfo:
        return self._next().info()


class _Pipe(GenerationCall):
    """A generation in this process. One message is under way in either direction."""

    def __init__(self, decoder: FakeDecoder, seconds: float) -> None:
        self._in: asyncio.Queue[decoder_pb2.GenerateRequest | None] = asyncio.Queue(1)
        self._out: asyncio.Queue[decoder_pb2.GenerateResponse] = asyncio.Queue(1)
        self.running = asyncio.create_task(self._run(decoder, seconds))

    async def _requests(self) -> AsyncIterator[decoder_pb2.GenerateRequest]:
        while (request := await self._in.get()) is not None:
            yield request

    async def _run(self, decoder: FakeDecoder, seconds: float) -> None:
        async with contextlib.aclosing(decoder.generate(self._requests(), seconds)) as responses:
            async for response in responses:
                await self._out.put(response)

    async def _or_end(self, action: Awaitable[Any]) -> Any:
        task = asyncio.ensure_future(action)
        try:
            await asyncio.wait((task, self.running), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else CallEndedError
        finally:
            await cancel_and_wait(task)

    async def send(self, request: decoder_pb2.GenerateRequest) -> None:
        if await self._or_end(self._in.put(request)) is CallEndedError:
            raise CallEndedError

    async def done_sending(self) -> None:
        if await self._or_end(self._in.put(None)) is CallEndedError:
            raise CallEndedError

    async def receive(self) -> decoder_pb2.GenerateResponse | None:
        response = await self._or_end(self._out.get())
        if response is not CallEndedError:
            return response
        if not self._out.empty():
            return self._out.get_nowait()
        self.running.result()
        return None


class InProcessDecoder(DecoderTier):
    """A tier of replicas in this process; each call goes to the next one."""

    def __init__(self, *replicas: FakeDecoder) -> None:
        self._replicas = replicas
        self._turn = 0
        self.available = len(replicas)

    @property
    def replicas(self) -> ReplicaCount:
        return ReplicaCount(self.available, len(self._replicas))

    def _next(self) -> FakeDecoder:
        self._turn += 1
        return self._replicas[(self._turn - 1) % len(self._replicas)]

    @contextlib.asynccontextmanager
    async def generate(
        self, opening: decoder_pb2.GenerateOpen, *, seconds: float, route: Route
    ) -> AsyncIterator[GenerationCall]:
        """One replica's generation, with the opening as its first message."""
        pipe = _Pipe(self._next(), seconds)
        try:
            with contextlib.suppress(CallEndedError):  # `receive` raises why
                await pipe.send(decoder_pb2.GenerateRequest(open=opening))
            yield pipe
        finally:
            await cancel_and_wait(pipe.running)

    async def count(
        self, request: decoder_pb2.CountPromptTokensRequest, *, seconds: float, route: Route
    ) -> decoder_pb2.CountPromptTokensResponse:
        return self._next().count(request)

    async def detokenize(
        self, request: chat_pb2.DetokenizeRequest, *, seconds: float, route: Route
    ) -> chat_pb2.DetokenizeResponse:
        return self._next().detokenize(request)

    async def model(self, *, seconds: float, route: Route) -> chat_pb2.Model:
        return self._next().model()


class _VisionServicer(vision_pb2_grpc.VisionEncoderServicer):
    def __init__(self, vision: FakeVision) -> None:
        self._vision = vision

    async def Encode(self, request: Any, context: Any) -> AsyncIterator[vision_pb2.EncodeResponse]:
        async with contextlib.aclosing(self._vision.encode(request, context.time_remaining())) as responses:
            async for response in responses:
                yield response

    async def Describe(self, request: Any, context: Any) -> media_pb2.MediaLayout:
        self._vision.described.append(request)
        return self._vision.layout(request)

    async def GetEncoder(self, request: Any, context: Any) -> vision_pb2.EncoderInfo:
        return self._vision.info()


class _DecoderServicer(decoder_pb2_grpc.DecoderServicer):
    def __init__(self, decoder: FakeDecoder) -> None:
        self._decoder = decoder

    async def Generate(self, requests: Any, context: Any) -> AsyncIterator[decoder_pb2.GenerateResponse]:
        responses = self._decoder.generate(aiter(requests), context.time_remaining())
        async with contextlib.aclosing(responses):
            async for response in responses:
                yield response

    async def CountPromptTokens(self, request: Any, context: Any) -> decoder_pb2.CountPromptTokensResponse:
        return self._decoder.count(request)

    async def Detokenize(self, request: Any, context: Any) -> chat_pb2.DetokenizeResponse:
        return self._decoder.detokenize(request)

    async def GetModel(self, request: Any, context: Any) -> chat_pb2.Model:
        return self._decoder.model()


async def set_serving(fake: FakeVision | FakeDecoder, *, serving: bool) -> None:
    """Set the health of a fake that is served."""
    assert fake.health is not None
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    await fake.health.set("", status)


@contextlib.asynccontextmanager
async def serve(
    fake: FakeVision | FakeDecoder,
    port: int = 0,
    *,
    credentials: Credentials = INSECURE,
    client_names: frozenset[str] = frozenset(),
) -> AsyncIterator[tuple[str, grpc.aio.Server]]:
    """Put a fake on the loopback: its address and its server."""
    server = grpc.aio.server(
        interceptors=[CallInterceptor(client_names=client_names)], options=[("grpc.so_reuseport", 0)]
    )
    if isinstance(fake, FakeVision):
        vision_pb2_grpc.add_VisionEncoderServicer_to_server(_VisionServicer(fake), server)
    else:
        decoder_pb2_grpc.add_DecoderServicer_to_server(_DecoderServicer(fake), server)
    if fake.health is not None:
        await set_serving(fake, serving=True)
        health_pb2_grpc.add_HealthServicer_to_server(fake.health, server)
    address = f"127.0.0.1:{open_port(server, '127.0.0.1', port, credentials=credentials)}"
    await server.start()
    try:
        yield address, server
    finally:
        await server.stop(None)


async def _process(arguments: argparse.Namespace) -> None:
    """A fake as a process: it tells its address, and `deaf` each time that it stops at the stage asked for.

    There it stays until a line comes on stdin, and then fails with RESOURCE_EXHAUSTED. It ends when stdin does.
    """
    line = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))

    async def stop_at(call: EncodeCall | GenerateCall, stage: int | str) -> None:
        if isinstance(call, GenerateCall) and stage == "read":
            stage = f"read {len(call.order)}"
        if str(stage) == arguments.stop_at:
            print("deaf", flush=True)  # noqa: T201
            await asyncio.shield(line)
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "FULL", "the replica is full", retry_after=2.0)

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the test
    fake: FakeVision | FakeDecoder = FakeVision() if arguments.what == "vision" else FakeDecoder()
    fake.hook = stop_at
    async with serve(fake) as (address, server):
        print(address, flush=True)  # noqa: T201
        if await line:  # else the test is gone
            await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["vision", "decoder"])
    parser.add_argument(
        "--stop-at", default="", help="`open`, `read N` after N messages, `start`, `delta`, a chunk's number"
    )
    asyncio.run(_process(parser.parse_args()))
