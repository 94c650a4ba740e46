"""Errors survive the wire whole."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2, status_pb2

from serving.errors import (
    Code,
    Reason,
    ServiceError,
    Violation,
    invalid,
    overloaded,
    too_large,
    unavailable,
    unimplemented,
)
from serving.status import from_proto, to_proto


@pytest.mark.parametrize("code", list(Code))
def test_every_code_survives(code: Code) -> None:
    """Code, reason, message, violations, delay and metadata come back as they went."""
    error = ServiceError(
        code,
        "SOME_REASON",
        "a sentence",
        violations=(Violation("a.b", "is wrong"), Violation("c[0]", "is missing")),
        retry_after=1.25,
        metadata={"limit": "7"},
    )
    back = from_proto(to_proto(error))
    assert vars(back) == vars(error)


def test_absent_details_stay_absent() -> None:
    """No violations and no delay are not invented on the way."""
    back = from_proto(to_proto(ServiceError(Code.INTERNAL, "INTERNAL", "broken")))
    assert back.violations == ()
    assert back.retry_after is None


def test_a_foreign_code_is_internal() -> None:
    """A code that Triptych does not use is INTERNAL and keeps its own name as reason."""
    back = from_proto(status_pb2.Status(code=code_pb2.DATA_LOSS, message="lost"))
    assert back.code is Code.INTERNAL
    assert back.reason == "DATA_LOSS"


@pytest.mark.parametrize(
    ("error", "code", "path"),
    [
        (invalid("messages", "is empty"), Code.INVALID_ARGUMENT, "messages"),
        (unimplemented("tools", "leave it out"), Code.UNIMPLEMENTED, "tools"),
        (too_large("data", "9 is over 8", reason=Reason.TENSOR_TOO_LARGE, limit=8), Code.RESOURCE_EXHAUSTED, "data"),
    ],
)
def test_field_errors_name_the_field(error: ServiceError, code: Code, path: str) -> None:
    """The helpers name the field in the violation and in the message."""
    assert error.code is code
    assert error.violations[0].field == path
    assert path in error.message


def test_transient_errors_say_when_to_come_back() -> None:
    """Overload and absence carry a delay."""
    assert overloaded(Reason.QUEUE_FULL, "full", retry_after=2.0).retry_after == 2.0
    assert unavailable(Reason.ENGINE_LOST, "gone").retry_after
