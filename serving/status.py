"""Converts service errors to and from google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.errors import Code, Reason, ServiceError, Violation, failure, overloaded
from serving.settings import MIB

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "triptych"

# gRPC itself refuses calls over a server's `maximum_concurrent_rpcs`, with this text and no details.
_TOO_MANY_CALLS = "Concurrent RPC limit"

# Likewise messages over the limit, with the two sizes in bytes.
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")


def to_proto(error: ServiceError) -> status_pb2.Status:
    """The error as a google.rpc.Status."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.value), message=error.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_proto(status: status_pb2.Status) -> ServiceError:
    """The inverse of `to_proto`. A code that Triptych does not use becomes INTERNAL."""
    name = code_pb2.Code.Name(status.code)
    code = Code.__members__.get(name, Code.INTERNAL)
    reason, metadata = name, {}
    violations: tuple[Violation, ...] = ()
    retry_after = None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif packed.Unpack(bad):
            violations = tuple(Violation(v.field, v.description) for v in bad.field_violations)
        elif packed.Unpack(retry):
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    return ServiceError(code, reason, status.message, violations=violations, retry_after=retry_after, metadata=metadata)


def from_rpc_error(error: grpc.RpcError) -> ServiceError:
    """The error of a failed call: its details if the server sent them, else its code and text.

    Args:
        error: As raised by a call on a channel, blocking or asyncio.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return failure(Reason.INTERNAL, "a call failed without a status")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has the needed methods
    if status is not None:
        return from_proto(status)
    name = error.code().name
    if name == "UNKNOWN":
        name = "INTERNAL"
    code = Code.__members__.get(name, Code.INTERNAL)
    if code is Code.RESOURCE_EXHAUSTED and _TOO_MANY_CALLS in (error.details() or ""):
        return overloaded(Reason.TOO_MANY_CALLS, "the server takes no more calls at once", retry_after=1.0)
    if code is Code.RESOURCE_EXHAUSTED and (sizes := _MESSAGE_TOO_LARGE.search(error.details() or "")):
        sent, limit = (f"{int(size) / MIB:.1f} MiB" for size in sizes.groups())
        message = f"the request is {sent} and the server takes {limit}: send fewer or smaller images and videos"
        return failure(Reason.BODY_TOO_LARGE, message, metadata={"limit": sizes[2]})
    retry_after = 1.0 if code is Code.UNAVAILABLE else None
    return ServiceError(code, name, error.details() or name, retry_after=retry_after)
