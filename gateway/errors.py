"""Errors of the tiers in the client's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum

from serving.errors import Code, ServiceError, Violation, unavailable
from vlm.v1 import media_pb2


class Tier(Enum):
    """The services behind the gateway."""

    VISION = "vision"
    DECODER = "decoder"


def untyped(error: ServiceError) -> bool:
    """Whether the error is gRPC's own, and no service's: its text may tell addresses inside the house."""
    return error.reason == error.code.value


def renamed(error: ServiceError, rename: Callable[[str], str]) -> ServiceError:
    """The same error with other names for the fields at fault, in its violations and in its message.

    Args:
        error: As the tier sent it.
        rename: From a path in the tier's request to a path in the client's.
    """
    violations = tuple(Violation(rename(v.field), v.description) for v in error.violations)
    message = error.message
    for old, new in zip(error.violations, violations, strict=True):
        # Only where it is the field's name: at the start (`data: cannot be read`), or between backticks.
        if re.match(rf"{re.escape(old.field)}[: ]", message):
            message = new.field + message[len(old.field) :]
        message = message.replace(f"`{old.field}`", f"`{new.field}`")
    return ServiceError(
        error.code,
        error.reason,
        message,
        violations=violations,
        retry_after=error.retry_after,
        metadata=error.metadata,
    )


def of_medium(error: ServiceError, path: str, own: media_pb2.MediaOptions) -> ServiceError:
    """An error of the vision service in the words of the gateway's client.

    Args:
        error: As the vision service sent it: its request has `kind`, `data` and `options`.
        path: Path of the medium in the client's request, as in `messages[0].parts[1].image`.
        own: The medium's own options, as the client sent them; what they do not set came from the request's.
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


_BETWEEN_US = re.compile(r"(features|layouts)\[(\d+)\]|header\b|chunk\b|open\b|layouts\b")
"""Fields of the decoder's requests that the gateway fills in, and not its client."""


def of_decoder(error: ServiceError, paths: Sequence[str]) -> ServiceError:
    """An error of the decoder in the words of the gateway's client.

    Most of its fields are the client's own. Features are not: too many of them are too large a medium to the client,
    and wrong ones are no fault of the client's.

    Args:
        error: As the decoder sent it.
        paths: Where each medium is in the client's request.
    """
    ours = [match for violation in error.violations if (match := _BETWEEN_US.match(violation.field))]
    if not ours:
        return error
    if error.code is Code.INVALID_ARGUMENT:
        return broken(Tier.DECODER, f"does not take what the vision service made: {error.message}")

    def rename(field: str) -> str:
        match = _BETWEEN_US.match(field)
        return paths[int(match[2])] if match and match[2] and int(match[2]) < len(paths) else field

    return renamed(error, rename)


def lost(tier: Tier, error: ServiceError, *, attempts: int) -> ServiceError:
    """What the client is told when a tier stays away.

    Args:
        tier: Which one.
        error: Why the last attempt failed.
        attempts: How many there were.
    """
    cause = "" if untyped(error) else f": {error.message}"
    tries = "" if attempts == 1 else f" after {attempts} attempts"
    return unavailable(f"{tier.name}_UNAVAILABLE", f"the {tier.value} service is not available{tries}{cause}")


def lost_midway(error: ServiceError, *, tokens: int) -> ServiceError:
    """What the client is told when the decoder is lost in the middle of an answer.

    Args:
        error: How it was lost.
        tokens: How many tokens the client has.
    """
    cause = "" if untyped(error) else f": {error.message}"
    return unavailable(
        f"{Tier.DECODER.name}_UNAVAILABLE",
        f"the decoder service was lost in the middle of the answer, after {tokens} tokens{cause}",
    )


def out_of_time(seconds: float) -> ServiceError:
    """DEADLINE_EXCEEDED.

    Args:
        seconds: How long the request had.
    """
    return ServiceError(
        Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"the request was not answered within its {seconds:.3g} seconds"
    )


def broken(tier: Tier, message: str) -> ServiceError:
    """INTERNAL: a tier does not keep to the protocol."""
    return ServiceError(Code.INTERNAL, f"{tier.name}_PROTOCOL", f"the {tier.value} service {message}")
