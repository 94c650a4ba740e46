"""The interfaces of `gateway.ports`, implemented with gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc._cython.cygrpc import InternalError  # type: ignore[import-not-found]  # see `_GrpcGenerationCall.send`

from gateway.ports import CallEndedError, DecoderTier, GenerationCall, ReplicaCount, Route, VisionTier
from gateway.replicas import Attempt, ReplicaSet
from serving.errors import ServiceError
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc, media_pb2, vision_pb2, vision_pb2_grpc

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[decoder_pb2.GenerateRequest, decoder_pb2.GenerateResponse]

S = TypeVar("S")
T = TypeVar("T")


async def _unary(replicas: ReplicaSet[S], route: Route, start: Callable[[S], grpc.aio.UnaryUnaryCall[Any, T]]) -> T:
    with replicas.attempt(route) as attempt:
        call = start(attempt.stub)
        attempt.follow(call)
        try:
            result = await attempt.receive(call)
            attempt.succeeded()
            return result
        finally:
            call.cancel()  # no effect on an ended call; an unfinished one would never be collected


def _patches_left(response: vision_pb2.EncodeResponse) -> int | None:
    """Patches that are still to be encoded; None if the message does not state them."""
    which = response.WhichOneof("payload")
    if which == "header":
        grid = response.header.layout.grid_thw
        return grid.t * grid.h * grid.w
    if which == "progress" and response.progress.patches_total:
        return response.progress.patches_total - response.progress.patches_done
    return 0 if which == "chunk" else None


def _has_begun(response: vision_pb2.EncodeResponse) -> bool:
    """Whether the encoder has begun with the medium."""
    return response.HasField("chunk") or response.progress.patches_done > 0


class GrpcVisionTier(VisionTier):
    """The vision services.

    Args:
        replicas: Their replicas; the tier does not close them.
    """

    def __init__(self, replicas: ReplicaSet[vision_pb2_grpc.VisionEncoderAsyncStub]) -> None:
        self._replicas = replicas

    @property
    def replicas(self) -> ReplicaCount:
        """How many there are."""
        return self._replicas.count

    async def encode(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        """Call `VisionEncoder.Encode`."""
        with self._replicas.attempt(route) as attempt:
            call = attempt.stub.Encode(request, timeout=seconds)
            attempt.movable = True
            attempt.follow(call)
            del request
            try:
                # Anything else is EOF.
                while isinstance(response := await attempt.receive(call.read()), vision_pb2.EncodeResponse):
                    attempt.movable = attempt.movable and not _has_begun(response)
                    if (left := _patches_left(response)) is not None:
                        attempt.load = left
                    yield response
                attempt.succeeded()
            finally:
                call.cancel()

    async def describe(
        self, request: vision_pb2.EncodeRequest, *, seconds: float, route: Route
    ) -> media_pb2.MediaLayout:
        """Call `VisionEncoder.Describe`."""
        return await _unary(self._replicas, route, lambda stub: stub.Describe(request, timeout=seconds))

    async def encoder(self, *, seconds: float, route: Route) -> vision_pb2.EncoderInfo:
        """Call `VisionEncoder.GetEncoder`."""
        question = vision_pb2.GetEncoderRequest()
        return await _unary(self._replicas, route, lambda stub: stub.GetEncoder(question, timeout=seconds))


class _GrpcGenerationCall(GenerationCall):
    def __init__(self, call: _Call, attempt: Attempt[decoder_pb2_grpc.DecoderAsyncStub]) -> None:
        self._call = call
        self._attempt = attempt

    async def send(self, request: decoder_pb2.GenerateRequest) -> None:
        # `call.write` does the same, but if the server ends the call during a write, it replaces the server's status by
        # INTERNAL "Internal error from Core" (github.com/grpc/grpc/issues/36066, seen with 1.85.1): a failed decoder
        # would not be replaced, and no typed error would arrive. So the write uses the layer below.
        try:
            with self._attempt.failures():
                await self._call.wait_for_connection()
                await self._call._cython_call.send_serialized_message(request.SerializeToString())  # type: ignore[attr-defined]
        except (ServiceError, InternalError) as error:
            raise CallEndedError from error

    async def done_sending(self) -> None:
        try:
            with self._attempt.failures():
                await self._call.done_writing()
        except (ServiceError, InternalError) as error:
            raise CallEndedError from error

    async def receive(self) -> decoder_pb2.GenerateResponse | None:
        response = await self._attempt.receive(self._call.read())
        if not isinstance(response, decoder_pb2.GenerateResponse):  # it is EOF
            return None
        if response.event.HasField("delta"):  # the engine works; the answer may take minutes
            self._attempt.movable = False
            self._attempt.succeeded()
        return response


class _FailedCall(GenerationCall):
    """A generation for which there was no replica."""

    def __init__(self, error: ServiceError) -> None:
        self._error = error

    async def send(self, request: decoder_pb2.GenerateRequest) -> None:
        raise CallEndedError

    async def done_sending(self) -> None:
        raise CallEndedError

    async def receive(self) -> decoder_pb2.GenerateResponse | None:
        raise self._error


class GrpcDecoderTier(DecoderTier):
    """The decoder services.

    Args:
        replicas: Their replicas; the tier does not close them.
    """

    def __init__(self, replicas: ReplicaSet[decoder_pb2_grpc.DecoderAsyncStub]) -> None:
        self._replicas = replicas

    @property
    def replicas(self) -> ReplicaCount:
        """How many there are."""
        return self._replicas.count

    @asynccontextmanager
    async def generate(
        self, opening: decoder_pb2.GenerateOpen, *, seconds: float, route: Route
    ) -> AsyncIterator[GenerationCall]:
        """Call `Decoder.Generate`."""
        with ExitStack() as stack:
            try:
                attempt = stack.enter_context(self._replicas.attempt(route))
            except ServiceError as error:
                yield _FailedCall(error)
                return
            call = attempt.stub.Generate(timeout=seconds)
            stack.callback(call.cancel)
            attempt.movable = True
            attempt.follow(call)
            generation = _GrpcGenerationCall(call, attempt)
            with suppress(CallEndedError):  # `receive` raises the cause
                await generation.send(decoder_pb2.GenerateRequest(open=opening))
            yield generation

    async def count(
        self, request: decoder_pb2.CountPromptTokensRequest, *, seconds: float, route: Route
    ) -> decoder_pb2.CountPromptTokensResponse:
        """Call `Decoder.CountPromptTokens`."""
        return await _unary(self._replicas, route, lambda stub: stub.CountPromptTokens(request, timeout=seconds))

    async def detokenize(
        self, request: chat_pb2.DetokenizeRequest, *, seconds: float, route: Route
    ) -> chat_pb2.DetokenizeResponse:
        """Call `Decoder.Detokenize`."""
        return await _unary(self._replicas, route, lambda stub: stub.Detokenize(request, timeout=seconds))

    async def model(self, *, seconds: float, route: Route) -> chat_pb2.Model:
        """Call `Decoder.GetModel`."""
        question = decoder_pb2.GetModelRequest()
        return await _unary(self._replicas, route, lambda stub: stub.GetModel(question, timeout=seconds))
