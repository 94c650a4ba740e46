"""gRPC's server interceptor: converts errors to typed statuses, and logs and counts each call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from serving.calls import logged, observe
from serving.errors import Reason, ServiceError, unexpected
from serving.errors import failure as failure_of
from serving.status import from_rpc_error, to_proto

log = structlog.get_logger()

# Everybody who can connect may send these. `Watch` is not written as a generator, so it cannot be wrapped either.
_HEALTH = "/grpc.health.v1."
# Not part of the load.
_QUIET = "/grpc.reflection."


@contextlib.asynccontextmanager
async def _guard(
    method: str, context: grpc.aio.ServicerContext[Any, Any], names: frozenset[str]
) -> AsyncIterator[None]:
    """Run one call: convert its exception to a status, count it and log it."""
    failure: ServiceError | None = None
    with observe(method, "OK", quiet=method.startswith(_QUIET)) as call:
        try:
            if names:
                check_client(context, names)
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
            call.details = logged(failure)
    if failure is not None:
        await context.abort_with_status(rpc_status.to_status(to_proto(failure)))


def check_client(context: grpc.aio.ServicerContext[Any, Any], names: frozenset[str]) -> None:
    """Check that the client's certificate has one of the names: a DNS name, an IP address, or the common name.

    Raises:
        ServiceError: PERMISSION_DENIED if not.
    """
    identity = context.auth_context()
    found = [*identity.get("x509_subject_alternative_name", ()), *identity.get("x509_common_name", ())]
    if names.isdisjoint(name.decode(errors="replace") for name in found):
        raise failure_of(Reason.CLIENT_NOT_ALLOWED, "the client's certificate has no name of tls_client_names")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler in `_guard`, for unary and streaming calls.

    Args:
        client_names: Names of the client certificates that may call; empty: any client.
    """

    def __init__(self, client_names: frozenset[str] = frozenset()) -> None:
        self._names = client_names

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
        names = self._names
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        inner: Any = getattr(handler, "_".join(kind))
        make: Any = getattr(grpc, f"{'_'.join(kind)}_rpc_method_handler")

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _guard(method, context, names), contextlib.aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response

        async def unary(request: Any, context: Any) -> Any:
            async with _guard(method, context, names):
                return await inner(request, context)

        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped
