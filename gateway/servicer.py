"""The gRPC servicer of the gateway; passes calls to the conductor."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from gateway.conductor import Conductor
from gateway.keys.interceptor import ADMITTED
from gateway.retry import Deadline
from serving.calls import REQUEST_ID_HEADER, accept_request_id
from serving.errors import Reason, failure
from vlm.v1 import chat_pb2, gateway_pb2, gateway_pb2_grpc, media_pb2


class GatewayServicer(gateway_pb2_grpc.GatewayServicer):
    """The Gateway service.

    Args:
        conductor: Serves the calls.
        default_seconds: Time limit of a call without a deadline.
        max_seconds: Highest time limit of any call.
    """

    def __init__(self, conductor: Conductor, *, default_seconds: float, max_seconds: float) -> None:
        self._conductor = conductor
        self._default_seconds = default_seconds
        self._max_seconds = max_seconds

    def _deadline(self, context: grpc.aio.ServicerContext[Any, Any]) -> Deadline:
        left = context.time_remaining()
        # None without a deadline, contrary to the stubs.
        seconds = self._default_seconds if left is None else left  # type: ignore[redundant-expr]
        return Deadline(min(seconds, self._max_seconds))

    async def Chat(
        self,
        request: gateway_pb2.ChatRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.ChatRequest, chat_pb2.ChatEvent],
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        """Generate an answer to a conversation."""
        request_id = accept_request_id(request.request_id)
        await context.send_initial_metadata(((REQUEST_ID_HEADER, request_id),))
        admitted = ADMITTED.get()
        answer = self._conductor.chat(
            request, request_id=request_id, deadline=self._deadline(context), tenant=admitted.tenant
        )
        async with contextlib.aclosing(admitted.client.metered(answer)) as events:
            async for event in events:
                yield event

    async def CountTokens(
        self,
        request: gateway_pb2.CountTokensRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.CountTokensRequest, gateway_pb2.CountTokensResponse],
    ) -> gateway_pb2.CountTokensResponse:
        """Count the tokens of a conversation."""
        return await self._conductor.count_tokens(
            request,
            request_id=accept_request_id(request.request_id),
            deadline=self._deadline(context),
            tenant=ADMITTED.get().tenant,
        )

    async def Detokenize(
        self,
        request: chat_pb2.DetokenizeRequest,
        context: grpc.aio.ServicerContext[chat_pb2.DetokenizeRequest, chat_pb2.DetokenizeResponse],
    ) -> chat_pb2.DetokenizeResponse:
        """Return the text of tokens."""
        accept_request_id(request.request_id)
        return await self._conductor.detokenize(request, deadline=self._deadline(context))

    async def ListModels(
        self,
        request: gateway_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[gateway_pb2.ListModelsRequest, gateway_pb2.ListModelsResponse],
    ) -> gateway_pb2.ListModelsResponse:
        """List the served models."""
        return gateway_pb2.ListModelsResponse(models=await self._conductor.models(deadline=self._deadline(context)))

    async def UploadMedia(
        self,
        request_iterator: AsyncIterator[gateway_pb2.UploadMediaRequest],
        context: grpc.aio.ServicerContext[gateway_pb2.UploadMediaRequest, media_pb2.MediaRef],
    ) -> media_pb2.MediaRef:
        """UNIMPLEMENTED for now."""
        raise failure(
            Reason.METHOD_UNIMPLEMENTED,
            "UploadMedia is not supported by this version; send the bytes of each file in `data` of a message's part",
        )
