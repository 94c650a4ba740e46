"""Converts service errors to and from google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from serving.errors import Code, Reason, ServiceError, Violation, failure
from serving.settings import MIB

if TYPE_CHECKING:
    from google.protobuf.message import Message

DOMAIN = "triptych"

_MOST_BYTES = 1000
"""Of a text that may repeat what a client sent. gRPC carries an error in headers, and clients take 8 KiB of those: the
message is among them twice, once with three bytes for one, and once more in a violation."""

# gRPC itself refuses messages over the limit, with the two sizes in bytes and no details.
_MESSAGE_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")

# A compressed message has its size only when it is unpacked, and gRPC does not say which.
_UNPACKED_TOO_LARGE = "Decompressed message larger than max"


def to_proto(error: ServiceError) -> status_pb2.Status:
    """The error as a google.rpc.Status; texts that are too long for it are cut."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=_cut(v.field), description=_cut(v.description))
                    for v in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.value), message=_cut(error.message))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _cut(text: str) -> str:
    data = text.encode()
    return text if len(data) <= _MOST_BYTES else data[:_MOST_BYTES].decode(errors="ignore") + "…"


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
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # AioRpcError has the needed methods
    except ValueError:  # the details are another error's: gRPC, or a proxy, had its own in place of the server's
        status = None
    if status is not None:
        return from_proto(status)
    name = error.code().name
    if name == "UNKNOWN":
        name = "INTERNAL"
    code = Code.__members__.get(name, Code.INTERNAL)
    if code is Code.RESOURCE_EXHAUSTED and (sizes := _MESSAGE_TOO_LARGE.search(error.details() or "")):
        sent, limit = (f"{int(size) / MIB:.1f} MiB" for size in sizes.groups())
        message = f"the request is {sent} and the server takes {limit}: send fewer or smaller images and videos"
        return failure(Reason.BODY_TOO_LARGE, message, metadata={"limit": sizes[2]})
    if code is Code.RESOURCE_EXHAUSTED and _UNPACKED_TOO_LARGE in (error.details() or ""):
        message = "the request is larger, when unpacked, than the server takes: send fewer or smaller images and videos"
        return failure(Reason.BODY_TOO_LARGE, message)
    retry_after = 1.0 if code is Code.UNAVAILABLE else None
    return ServiceError(code, name, error.details() or name, retry_after=retry_after)


def untyped(error: ServiceError) -> bool:
    """Whether an error is from gRPC and not from a service: its text may contain internal addresses."""
    return error.reason == error.code.value
