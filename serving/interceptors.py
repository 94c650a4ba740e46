"""gRPC's server interceptor: receives and parses messages, types errors, limits calls, and logs and counts them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from serving.calls import logged, observe
from serving.connections import ConnectionLimits, Places
from serving.errors import Reason, ServiceError, failure, overloaded, unexpected
from serving.status import from_rpc_error, to_proto

log = structlog.get_logger()

# Everybody who can connect may send these.
_HEALTH = "/grpc.health.v1."

# Health checks arrive every few seconds and are not part of the load.
_QUIET = (_HEALTH, "/grpc.reflection.")

_CHECK = f"{_HEALTH}Health/Check"

_LEAST_BYTES_PER_SECOND = 256 * 1024
"""At which a message of the largest size arrives in time."""

_Parse = Callable[[bytes], Any]


def check_client(context: grpc.aio.ServicerContext[Any, Any], names: frozenset[str]) -> None:
    """Check that the client's certificate has one of the names: a DNS name, an IP address, or the common name.

    Raises:
        ServiceError: PERMISSION_DENIED if not.
    """
    identity = context.auth_context()
    found = [*identity.get("x509_subject_alternative_name", ()), *identity.get("x509_common_name", ())]
    if names.isdisjoint(name.decode(errors="replace") for name in found):
        raise failure(Reason.CLIENT_NOT_ALLOWED, "the client's certificate has no name of tls_client_names")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler.

    gRPC would receive and parse the message of a unary call before it calls the handler: without a time limit, and with
    the parser's exception as the status. So every handler is registered as one that takes a stream of bytes, which is
    the same on the wire.

    Args:
        max_calls: Most calls that run at once, and most whose message is being received, and most streams of health
            and reflection. `Health.Check` is not limited.
        max_message_bytes: Largest message; it tells how long a message may take.
        limits: Its time limits of receiving and sending.
        client_names: Names of the client certificates that may call; empty: any client.
    """

    def __init__(
        self,
        *,
        max_calls: int = 1024,
        max_message_bytes: int = 0,
        limits: ConnectionLimits | None = None,
        client_names: frozenset[str] = frozenset(),
    ) -> None:
        limits = limits or ConnectionLimits()
        self._receiver = _Receiver(max_calls, limits.receive_seconds + max_message_bytes / _LEAST_BYTES_PER_SECOND)
        self._running = Places(max_calls)
        self._watching = Places(max_calls)
        self._send_seconds = limits.send_seconds
        self._names = client_names

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of the call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        # The stubs have only blocking handlers, so asyncio handlers are typed as Any.
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        inner: Any = getattr(handler, "_".join(kind))
        parse: Any = handler.request_deserializer

        async def request_of(messages: AsyncIterator[bytes], context: Any) -> Any:
            if handler.request_streaming:
                return _Parsed(messages, parse)
            return _parsed(parse, await self._receiver.message(context))

        async def unary(messages: Any, context: Any) -> Any:
            async with self._guard(method, context):
                request = await request_of(messages, context)
                with self._place(method):
                    return await inner(request, context)

        async def stream(messages: Any, context: Any) -> None:
            async with self._guard(method, context):
                request = await request_of(messages, context)
                with self._place(method):
                    if inspect.iscoroutinefunction(inner):  # it writes its responses itself
                        await inner(request, context)
                        return
                    async with contextlib.aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            await self._send(response, context)

        make: Any = getattr(grpc, f"stream_{kind[1]}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            stream if handler.response_streaming else unary,
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _place(self, method: str) -> contextlib.AbstractContextManager[None]:
        if method == _CHECK:
            return contextlib.nullcontext()
        return (self._watching if method.startswith(_QUIET) else self._running).taken()

    async def _send(self, response: Any, context: Any) -> None:
        try:
            async with asyncio.timeout(self._send_seconds):
                await context.write(response)
        except TimeoutError:
            message = f"the client took nothing of the answer for {self._send_seconds:g} seconds (send_timeout_seconds)"
            raise failure(Reason.SEND_TIMEOUT, message) from None

    @contextlib.asynccontextmanager
    async def _guard(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        """Run one call: convert its exception to a status, count it and log it."""
        failed: ServiceError | None = None
        with observe(method, "OK", quiet=method.startswith(_QUIET)) as call:
            try:
                if self._names and not method.startswith(_HEALTH):
                    check_client(context, self._names)
                yield
            except (asyncio.CancelledError, grpc.aio.InternalError):
                # The client has gone; a read or write may fail before the cancellation arrives. Must be raised again:
                # otherwise the call's native memory leaks.
                call.code = "CANCELLED"
                raise
            except ServiceError as error:
                failed = error
            except grpc.aio.AbortError:
                call.code = context.code().name if isinstance(context.code(), grpc.StatusCode) else "UNKNOWN"
                raise
            except grpc.RpcError as error:
                failed = from_rpc_error(error)
            except Exception:  # a client must not get the text of an unexpected exception
                log.exception("call failed unexpectedly", method=method)
                failed = unexpected()
            if failed is not None:
                call.code = failed.code.value
                call.details = logged(failed)
        if failed is not None:
            try:
                async with asyncio.timeout(self._send_seconds):
                    await context.abort_with_status(rpc_status.to_status(to_proto(failed)))
            except (TimeoutError, grpc.aio.InternalError):
                # The status waits behind messages that the client does not take, or gRPC has ended the call itself, as
                # for a message that is over the limit.
                raise asyncio.CancelledError from None


class _Receiver:
    """Receives the messages of unary calls.

    Args:
        most: Most messages that are awaited at once. One more ends the call that waits longest: a client that sends its
            message is served, however many do not.
        seconds: Time for a message.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._waiting: dict[asyncio.Timeout, None] = {}  # the oldest first

    async def message(self, context: Any) -> bytes:
        """The only message of a call.

        Raises:
            ServiceError: DEADLINE_EXCEEDED, it does not come in time; RESOURCE_EXHAUSTED, too many others wait;
                INVALID_ARGUMENT, the client sent none.
        """
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.reschedule(0.0)
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                self._waiting[limit] = None
                message = await context.read()
        except TimeoutError:
            if limit not in self._waiting:
                text = f"{self._most} calls whose message has not arrived are too many (max_concurrent_rpcs)"
                raise overloaded(Reason.TOO_MANY_CALLS, text, retry_after=1.0) from None
            text = f"the message did not arrive within {self._seconds:.0f} seconds (receive_timeout_seconds)"
            raise failure(Reason.RECEIVE_TIMEOUT, text) from None
        finally:
            self._waiting.pop(limit, None)
        if not isinstance(message, bytes):
            raise failure(Reason.MESSAGE_MALFORMED, "the call has no message")
        return message


class _Parsed:
    """The parsed messages of a stream. A class, since an abandoned generator would be closed late."""

    def __init__(self, messages: AsyncIterator[bytes], parse: _Parse) -> None:
        self._messages = messages
        self._iterator: AsyncIterator[bytes] | None = None
        self._parse = parse

    def __aiter__(self) -> _Parsed:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:  # not before it is read, since gRPC's iterator must not be abandoned
            self._iterator = aiter(self._messages)
        return _parsed(self._parse, await anext(self._iterator))


def _parsed(parse: _Parse, message: bytes) -> Any:
    try:
        return parse(message)
    except DecodeError:
        text = "the message is not one of the method's type, or a string in it is not UTF-8"
        raise failure(Reason.MESSAGE_MALFORMED, text) from None
