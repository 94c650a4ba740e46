"""gRPC's server interceptor: converts errors to typed statuses, and logs and counts each call."""

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

# Health checks arrive every few seconds and are not part of the load.
_QUIET = "/grpc.reflection."
# Its `Watch` is not written as a generator, so it cannot be wrapped either.
_HEALTH = "/grpc.health.v1."


@contextlib.asynccontextmanager
async def _guard(method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Run one call: convert its exception to a status, count it and log it."""
    failure: ServiceError | None = None
    with observe(method, "OK", quiet=method.startswith(_QUIET)) as call:
        try:
            yield
        except asyncio.CancelledError:
            # Must be raised again: otherwise the call's native memory leaks.
            call.code = "CANCELLED"
            raise
        except ServiceError as error:
            failure = error
        except grpc.aio.AbortError:
            call.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
            raise
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        except Exception:  # a client must not get the text of an unexpected exception
            log.exception("call failed unexpectedly", method=method)
            failure = unexpected()
        if failure is not None:
            call.code = failure.code.value
            call.details = {"reason": failure.reason, "error": failure.message}
    if failure is not None:
        await context.abort_with_status(rpc_status.to_status(to_proto(failure)))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler in `_guard`, for unary and streaming calls."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(_HEALTH):
            return handler
        # The stubs have only blocking handlers, so asyncio handlers are typed as Any.
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
