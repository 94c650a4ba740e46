"""The errors of the client: those that a server sent, and its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc

from serving.errors import Code, Reason
from serving.errors import ServiceError as TriptychError
from serving.status import from_rpc_error, untyped

if TYPE_CHECKING:
    from triptych.events import Answer


__all__ = ["GATEWAY_UNAVAILABLE", "AnswerError", "TriptychError", "closed", "incomplete", "timed_out", "typed"]

_RETRY_SECONDS = 0.5


class AnswerError(TriptychError):
    """An answer is complete, but not what was asked for.

    Attributes:
        reason: `ANSWER_CUT`: a limit ended it. `ANSWER_INVALID`: it is not of the type, or calls a tool instead.
        answer: The answer; None if only a tool call is at hand.
    """

    def __init__(self, code: Code, reason: str, message: str, answer: Answer | None = None) -> None:
        super().__init__(code, reason, message)
        self.answer = answer


def closed() -> TriptychError:
    """The error of a call on a closed client."""
    return TriptychError(Code.FAILED_PRECONDITION, "CLIENT_CLOSED", "the client is closed")


def incomplete() -> TriptychError:
    """The error of a stream that ended without its last event."""
    return TriptychError(Code.INTERNAL, "ANSWER_INCOMPLETE", "the events ended before the answer did")


def timed_out() -> TriptychError:
    """The error of a call that this side has ended after its deadline."""
    message = "the call was not answered within its deadline (timeout)"
    return TriptychError(Code.DEADLINE_EXCEEDED, Reason.DEADLINE_EXCEEDED.name, message)


GATEWAY_UNAVAILABLE = "GATEWAY_UNAVAILABLE"
"""The reason of an error that no server has sent: the gateway cannot be reached, or the connection to it was lost."""


@contextlib.contextmanager
def typed(address: str) -> Iterator[None]:
    """Convert errors of gRPC to TriptychError.

    Args:
        address: The gateway's, for the message.
    """
    try:
        yield
    except grpc.RpcError as error:
        failure = from_rpc_error(error)
        if failure.code is Code.UNAVAILABLE and untyped(failure):
            message = f"the gateway at {address} does not answer: {failure.message}"
            failure = TriptychError(Code.UNAVAILABLE, GATEWAY_UNAVAILABLE, message, retry_after=_RETRY_SECONDS)
        raise failure from error
