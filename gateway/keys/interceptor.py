"""gRPC's side of `gateway.keys.access`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import grpc
import structlog

from gateway.keys.access import FOR_ADMINS, FOR_USERS, KEY_HEADERS, REFUSED, Access, Admitted, Caller, host_of_peer
from serving.errors import ServiceError

_OPEN = "/grpc.health.v1."
_ADMIN = ("/grpc.reflection.", "/grpc.channelz.")


ADMITTED: ContextVar[Admitted] = ContextVar("admitted")
"""Of the running call; for its servicer alone, which passes on what it needs."""


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid key or over a limit. It stands within `CallInterceptor`, which types its errors.

    Health needs no key. The message of a call that is refused for its key is not read.

    Args:
        access: Decides.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Check the key now, and the limits around the handler."""
        method = str(handler_call_details.method)
        if method.startswith(_OPEN):
            return await continuation(handler_call_details)
        metadata = dict(reversed(handler_call_details.invocation_metadata or ()))  # of two, the first
        headers = {name: value for name in KEY_HEADERS if isinstance(value := metadata.get(name), str)}
        try:
            caller = self._access.caller(headers.get, FOR_ADMINS if method.startswith(_ADMIN) else FOR_USERS)
        except ServiceError as error:
            REFUSED.labels(error.reason).inc()
            return _refusing(error)
        handler = await continuation(handler_call_details)
        return handler if handler is None or method.startswith(_ADMIN) else self._limited(handler, caller)

    def _limited(self, handler: grpc.RpcMethodHandler[Any, Any], caller: Caller) -> grpc.RpcMethodHandler[Any, Any]:
        # The stubs have only blocking handlers, so asyncio handlers are typed as Any.
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        inner: Any = getattr(handler, "_".join(kind))
        make: Any = getattr(grpc, f"{'_'.join(kind)}_rpc_method_handler")

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._admitted(caller, context.peer()):
                async with contextlib.aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        yield response

        async def unary(request: Any, context: Any) -> Any:
            with self._admitted(caller, context.peer()):
                return await inner(request, context)

        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    @contextlib.contextmanager
    def _admitted(self, caller: Caller, peer: str) -> Iterator[None]:
        if caller.key:
            structlog.contextvars.bind_contextvars(key=caller.key)
        client = self._access.client(caller, host_of_peer(peer))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(client.request())
            except ServiceError as error:
                REFUSED.labels(error.reason).inc()
                raise
            ADMITTED.set(Admitted(caller.tenant, client))
            yield


def _refusing(error: ServiceError) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that reads nothing and fails; its kind fits every method."""

    async def refuse(requests: Any, context: Any) -> AsyncIterator[Any]:
        raise error
        yield  # type: ignore[unreachable]  # makes it a generator

    handler: Any = grpc.stream_stream_rpc_method_handler
    refusing: grpc.RpcMethodHandler[Any, Any] = handler(refuse)
    return refusing
