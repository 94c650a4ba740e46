"""gRPC's server interceptor: failures become typed statuses, and each call is logged and counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from serving.calls import observe
from serving.errors import ServiceError, unexpected
from serving.status import from_rpc_error, to_proto

log = structlog.get_logger()

# Health checks come every few seconds and say nothing about the work.
_QUIET = ("/grpc.health.v1.", "/grpc.reflection.")


@contextlib.asynccontextmanager
async def _guard(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Run one call: turn what it raises into a status, count it and log it."""
    failure: ServiceError | None = None
    with observe(method, "OK") as call:
        try:
            yield
        except asyncio.CancelledError:
            # Must be raised on: a handler that swallows it leaks the call's native memory.
            call.code = "CANCELLED"
            raise
        except ServiceError as error:
            failure = error
        except grpc.aio.AbortError:
            call.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
            raise
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        except Exception:  # the last line of defence: a client must not see a bare exception's text
            log.exception("call failed unexpectedly", method=method)
            failure = unexpected()
        if failure is not None:
            call.code = failure.code.value
            call.details = {"reason": failure.reason, "error": failure.message}
    if failure is not None:
        await context.abort_with_status(rpc_status.to_status(to_proto(failure)))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Puts the guard around every handler, whichever side of the call streams."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler that the call would go to."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_QUIET):
            return handler
        # The stubs know only blocking handlers, so the asyncio ones go through as Any.
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        inner: Any = getattr(handler, "_".join(kind))
        make: Any = getattr(grpc, f"{'_'.join(kind)}_rpc_method_handler")

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _guard(method, context), contextlib.aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response

        async def unary(request: Any, context: Any) -> Any:
            async with _guard(method, context):
                return await inner(request, context)

        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped
