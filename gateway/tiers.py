"""The interfaces of `gateway.ports`, implemented with gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc._cython.cygrpc import InternalError  # type: ignore[import-not-found]  # see `_GrpcGenerationCall.send`

from gateway.ports import CallEndedError, DecoderTier, GenerationCall, VisionTier
from serving.errors import Reason, ServiceError, unavailable
from serving.status import from_rpc_error
from vlm.v1 import chat_pb2, decoder_pb2, decoder_pb2_grpc, media_pb2, vision_pb2, vision_pb2_grpc

if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[decoder_pb2.GenerateRequest, decoder_pb2.GenerateResponse]

T = TypeVar("T")


def _failure(error: grpc.RpcError) -> ServiceError:
    """The error of a failed call to a tier."""
    # A call cancelled by this side is not read any more, so the server has cancelled it, for example at shutdown.
    if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED:
        return unavailable(Reason.CANCELLED, "it gave the call up")
    failure = from_rpc_error(error)
    if failure.reason == Reason.CLIENT_NOT_ALLOWED.name:  # another replica may have other settings
        return unavailable(Reason.CLIENT_NOT_ALLOWED, "it does not accept the gateway's certificate (tls_client_names)")
    return failure


async def _unary(call: grpc.aio.UnaryUnaryCall[Any, T]) -> T:
    try:
        return await call
    except grpc.RpcError as error:
        raise _failure(error) from error
    finally:
        call.cancel()  # no effect on an ended call; an unfinished one would never be collected


class GrpcVisionTier(VisionTier):
    """The vision services behind a channel.

    Args:
        channel: A load-balancing channel; the tier does not close it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = vision_pb2_grpc.VisionEncoderStub(channel)

    async def encode(
        self, request: vision_pb2.EncodeRequest, *, seconds: float
    ) -> AsyncGenerator[vision_pb2.EncodeResponse, None]:
        """Call `VisionEncoder.Encode`."""
        call = self._stub.Encode(request, timeout=seconds)
        del request
        try:
            while isinstance(response := await call.read(), vision_pb2.EncodeResponse):  # else it is EOF
                yield response
        except grpc.RpcError as error:
            raise _failure(error) from error
        finally:
            call.cancel()

    async def describe(self, request: vision_pb2.EncodeRequest, *, seconds: float) -> media_pb2.MediaLayout:
        """Call `VisionEncoder.Describe`."""
        return await _unary(self._stub.Describe(request, timeout=seconds))

    async def encoder(self, *, seconds: float) -> vision_pb2.EncoderInfo:
        """Call `VisionEncoder.GetEncoder`."""
        return await _unary(self._stub.GetEncoder(vision_pb2.GetEncoderRequest(), timeout=seconds))


class _GrpcGenerationCall(GenerationCall):
    def __init__(self, call: _Call) -> None:
        self._call = call

    async def send(self, request: decoder_pb2.GenerateRequest) -> None:
        # `call.write` does the same, but if the server ends the call during a write, it replaces the server's status by
        # INTERNAL "Internal error from Core" (github.com/grpc/grpc/issues/36066, seen with 1.85.1): a failed decoder
        # would not be replaced, and no typed error would arrive. So the write uses the layer below.
        try:
            await self._call.wait_for_connection()
            await self._call._cython_call.send_serialized_message(request.SerializeToString())  # type: ignore[attr-defined]
        except (grpc.RpcError, InternalError) as error:
            raise CallEndedError from error

    async def done_sending(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.RpcError, InternalError) as error:
            raise CallEndedError from error

    async def receive(self) -> decoder_pb2.GenerateResponse | None:
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise _failure(error) from error
        return response if isinstance(response, decoder_pb2.GenerateResponse) else None  # it is EOF


class GrpcDecoderTier(DecoderTier):
    """The decoder services behind a channel.

    Args:
        channel: A load-balancing channel; the tier does not close it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = decoder_pb2_grpc.DecoderStub(channel)

    @asynccontextmanager
    async def generate(self, opening: decoder_pb2.GenerateOpen, *, seconds: float) -> AsyncIterator[GenerationCall]:
        """Call `Decoder.Generate`."""
        call = self._stub.Generate(timeout=seconds)
        try:
            generation = _GrpcGenerationCall(call)
            with suppress(CallEndedError):  # `receive` raises the cause
                await generation.send(decoder_pb2.GenerateRequest(open=opening))
            yield generation
        finally:
            call.cancel()

    async def count(
        self, request: decoder_pb2.CountPromptTokensRequest, *, seconds: float
    ) -> decoder_pb2.CountPromptTokensResponse:
        """Call `Decoder.CountPromptTokens`."""
        return await _unary(self._stub.CountPromptTokens(request, timeout=seconds))

    async def detokenize(self, request: chat_pb2.DetokenizeRequest, *, seconds: float) -> chat_pb2.DetokenizeResponse:
        """Call `Decoder.Detokenize`."""
        return await _unary(self._stub.Detokenize(request, timeout=seconds))

    async def model(self, *, seconds: float) -> chat_pb2.Model:
        """Call `Decoder.GetModel`."""
        return await _unary(self._stub.GetModel(decoder_pb2.GetModelRequest(), timeout=seconds))
