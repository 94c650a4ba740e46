"""The failures that a client may see. No gRPC here: the cores raise these, `serving.status` puts them on the wire."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Code(enum.Enum):
    """The canonical status codes that Triptych answers with, named as in google.rpc.Code."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field.

    Attributes:
        field: Path of the field in the request, as in `messages[0].parts[1].image`.
        description: What is wrong and how to mend it, one sentence.
    """

    field: str
    description: str


class ServiceError(Exception):
    """A failure with all that a client needs to act on it.

    Attributes:
        code: The canonical status code.
        reason: Stable name of the failure for programs, as in `IMAGE_UNREADABLE`.
        message: One sentence for people.
        violations: The fields at fault.
        retry_after: Seconds after which another try may succeed; None where trying again is of no use.
        metadata: More facts for programs, as in the limit that was passed.
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        *,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})


def invalid(path: str, description: str, *, reason: str = "FIELD_INVALID") -> ServiceError:
    """INVALID_ARGUMENT for one field.

    Args:
        path: Path of the field in the request.
        description: What is wrong and how to mend it.
        reason: Stable name for programs.
    """
    violation = Violation(path, description)
    return ServiceError(Code.INVALID_ARGUMENT, reason, f"{path}: {description}", violations=(violation,))


def unimplemented(path: str, instead: str) -> ServiceError:
    """UNIMPLEMENTED for a field of the wire that does nothing yet.

    Args:
        path: Path of the field in the request.
        instead: What to do instead, as in `send the image's bytes in data`.
    """
    description = f"is not supported by this version; {instead}"
    violation = Violation(path, description)
    return ServiceError(Code.UNIMPLEMENTED, "FIELD_UNIMPLEMENTED", f"{path} {description}", violations=(violation,))


def too_large(path: str, description: str, *, reason: str, limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED for one field that passes a limit.

    Args:
        path: Path of the field in the request.
        description: What is too much, and what the limit is.
        reason: Stable name for programs.
        limit: The limit, for programs.
    """
    violation = Violation(path, description)
    return ServiceError(
        Code.RESOURCE_EXHAUSTED,
        reason,
        f"{path}: {description}",
        violations=(violation,),
        metadata={"limit": str(limit)},
    )


def overloaded(reason: str, message: str, *, retry_after: float) -> ServiceError:
    """RESOURCE_EXHAUSTED because the server is full now.

    Args:
        reason: Stable name for programs.
        message: What is full, and how full.
        retry_after: Seconds after which another try may succeed.
    """
    return ServiceError(Code.RESOURCE_EXHAUSTED, reason, message, retry_after=retry_after)


def unavailable(reason: str, message: str, *, retry_after: float = 1.0) -> ServiceError:
    """UNAVAILABLE: the same request may succeed elsewhere or later."""
    return ServiceError(Code.UNAVAILABLE, reason, message, retry_after=retry_after)


def unexpected() -> ServiceError:
    """INTERNAL: a bug. The exception itself is only logged."""
    return ServiceError(Code.INTERNAL, "INTERNAL", "an unexpected failure; the server's log says more")
