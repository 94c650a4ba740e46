"""Converts errors of the tiers for the gateway's clients, with the field names of the client's request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum

from serving.errors import Code, Reason, ServiceError, Violation, failure, sentence, unavailable
from serving.status import untyped
from vlm.v1 import media_pb2


class Tier(Enum):
    """The services behind the gateway."""

    VISION = "vision"
    DECODER = "decoder"


_UNAVAILABLE = {Tier.VISION: Reason.VISION_UNAVAILABLE, Tier.DECODER: Reason.DECODER_UNAVAILABLE}
_PROTOCOL = {Tier.VISION: Reason.VISION_PROTOCOL, Tier.DECODER: Reason.DECODER_PROTOCOL}


def renamed(error: ServiceError, rename: Callable[[str], str]) -> ServiceError:
    """The same error with renamed fields; its message is made again from the violations.

    Args:
        error: The tier's error. Without violations it keeps its message.
        rename: From a path in the tier's request to a path in the client's.
    """
    violations = tuple(Violation(rename(v.field), v.description) for v in error.violations)
    return ServiceError(
        error.code,
        error.reason,
        sentence(violations) or error.message,
        violations=violations,
        retry_after=error.retry_after,
        metadata=error.metadata,
    )


def of_medium(error: ServiceError, path: str, own: media_pb2.MediaOptions) -> ServiceError:
    """An error of the vision service with the names of the client's request.

    Args:
        error: The vision service's error, about `kind`, `data` or `options`.
        path: Path of the medium in the client's request, as in `messages[0].parts[1].image`.
        own: The medium's own options from the client; other options are from the request.
    """
    given = {descriptor.name for descriptor, _ in own.ListFields()}

    def rename(field: str) -> str:
        if field in ("data", "kind"):
            return path
        top, _, option = field.partition(".")
        if top != "options":
            return field
        return f"{path}.{field}" if option in given else f"media.{option}" if option else "media"

    return renamed(error, rename)


_INTERNAL_FIELDS = re.compile(r"(features|layouts)\[(\d+)\]|header\b|chunk\b|open\b|layouts\b")
"""Fields of the decoder's requests that the gateway sets, not its client."""


def of_decoder(error: ServiceError, paths: Sequence[str]) -> ServiceError:
    """An error of the decoder with the names of the client's request.

    Most of its fields are the client's own. Features are not: too many of them become a medium that is too large, and
    wrong ones an INTERNAL error.

    Args:
        error: The decoder's error.
        paths: Path of each medium in the client's request.
    """
    internal = [match for violation in error.violations if (match := _INTERNAL_FIELDS.match(violation.field))]
    if not internal:
        return error
    if error.code is Code.INVALID_ARGUMENT:
        return broken(Tier.DECODER, f"does not take what the vision service made: {error.message}")

    def rename(field: str) -> str:
        match = _INTERNAL_FIELDS.match(field)
        return paths[int(match[2])] if match and match[2] and int(match[2]) < len(paths) else field

    return renamed(error, rename)


def lost(tier: Tier, error: ServiceError, *, attempts: int) -> ServiceError:
    """UNAVAILABLE after the last attempt.

    Args:
        tier: The tier that failed.
        error: The error of the last attempt.
        attempts: Number of attempts.
    """
    cause = "" if untyped(error) else f": {error.message}"
    tries = "" if attempts == 1 else f" after {attempts} attempts"
    return unavailable(_UNAVAILABLE[tier], f"the {tier.value} service is not available{tries}{cause}")


def lost_midway(error: ServiceError, *, tokens: int) -> ServiceError:
    """UNAVAILABLE because the decoder failed in the middle of an answer.

    Args:
        error: The decoder's failure.
        tokens: Number of tokens that the client has received.
    """
    cause = "" if untyped(error) else f": {error.message}"
    return unavailable(
        Reason.DECODER_UNAVAILABLE,
        f"the decoder service was lost in the middle of the answer, after {tokens} tokens{cause}",
    )


def out_of_time(seconds: float) -> ServiceError:
    """DEADLINE_EXCEEDED.

    Args:
        seconds: The request's time limit.
    """
    return failure(Reason.DEADLINE_EXCEEDED, f"the request was not answered within its {seconds:.3g} seconds")


def broken(tier: Tier, message: str) -> ServiceError:
    """INTERNAL: a tier violated the protocol."""
    return failure(_PROTOCOL[tier], f"the {tier.value} service {message}")
