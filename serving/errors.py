"""The failures that a client may see. No gRPC here: the cores raise these, `serving.status` puts them on the wire."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, eq=False)  # by identity: as values of an enum two equal ones would be one
class ReasonInfo:
    """What is known of a reason.

    Attributes:
        code: The canonical status code that it comes with.
        raised_by: The services that fail for it, as in `vision, decoder`; `any` where all may.
        meaning: What went wrong, for people.
        advice: What to do about it.
        waits: Whether the error carries a delay after which another try may succeed.
        internal: Whether it passes between the services alone.
    """

    code: Code
    raised_by: str
    meaning: str
    advice: str
    waits: bool = False
    internal: bool = False


class Reason(enum.Enum):
    """The stable reasons of failures. The member's name is what is sent; the pages' table is made from the rest."""

    # The request
    FIELD_INVALID = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "any",
        "A field has a value that cannot be. The violation names it and says what may be there.",
        "Correct the field.",
    )
    FIELD_UNIMPLEMENTED = ReasonInfo(
        Code.UNIMPLEMENTED,
        "any",
        "A field of the wire that does nothing yet is set.",
        "Leave it out; the message says what to use instead.",
    )
    METHOD_UNIMPLEMENTED = ReasonInfo(
        Code.UNIMPLEMENTED, "gateway", "A call that does nothing yet.", "Send the bytes of each file in its message."
    )
    NOT_SERVED = ReasonInfo(
        Code.NOT_FOUND,
        "gateway",
        "HTTP: no such path, or not with this method (then the status is 405).",
        "Use `/v1/chat/completions`, `/v1/models` or `/healthz`.",
    )
    ROLE_UNKNOWN = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "A message's role is not set or not in the enum.",
        "Use `ROLE_SYSTEM`, `ROLE_USER` or `ROLE_ASSISTANT`.",
    )
    MODEL_NOT_FOUND = ReasonInfo(
        Code.NOT_FOUND,
        "gateway, decoder",
        "Another model than the served one was asked for.",
        "Leave `model` empty, or list them.",
    )
    TEMPLATE_REFUSES = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "The model's chat template raised an error for these messages.",
        "Read its sentence.",
    )

    # Too much
    BODY_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway",
        "HTTP: the body is over `max_message_bytes`.",
        "Send fewer or smaller media; base64 adds a third.",
    )
    TOO_MANY_MESSAGES = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway, decoder",
        "Over `max_messages` of the gateway, or over the decoder's 1,024.",
        "Drop old turns.",
    )
    TOO_MANY_PARTS = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway, decoder",
        "Over `max_parts` of the gateway, or over the decoder's 16,384.",
        "Join neighbouring texts.",
    )
    TOO_MANY_MEDIA = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway, decoder",
        "Over `max_media_per_request` or `max_prompt_media`.",
        "Send fewer, or raise both.",
    )
    TEXT_TOO_LONG = ReasonInfo(
        Code.RESOURCE_EXHAUSTED, "decoder", "The text is over `max_text_bytes` of the decoder.", "Shorten it."
    )
    PROMPT_TOO_LONG = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "decoder",
        "Text and media leave no room for an answer in the context.",
        "Shorten the text; lower `max_pixels`, `fps` or `max_frames`; or raise the decoder's `context_length` or "
        "`kv_cache_bytes`.",
    )
    MAX_TOKENS_TOO_LARGE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "`max_tokens` is over what the prompt leaves free. The count is of the prompt as far as it was known: a medium "
        "whose size had not come yet counts as one token. Not over HTTP, where it is cut.",
        "Lower it, leave it out, or set `clamp_max_tokens`.",
    )
    FEATURES_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "decoder",
        "The features of this request are over `max_feature_bytes`.",
        "Send smaller or fewer media.",
    )
    TENSOR_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "any",
        "An announced tensor is over what its place allows.",
        "As for FEATURES_TOO_LARGE.",
    )

    # Images and video
    MEDIA_EMPTY = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "A file of no bytes reached the vision service.", "Send the file."
    )
    IMAGE_UNREADABLE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "Not an image of a known format, or damaged.",
        "Send one of the formats that the message lists.",
    )
    IMAGE_TRUNCATED = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "The image breaks off before its end.", "Send all of it."
    )
    IMAGE_MODE_UNSUPPORTED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "32-bit or floating-point pixels, which have no agreed white.",
        "Convert it to 8-bit RGB.",
    )
    IMAGE_ASPECT_RATIO = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "One side is over 200 times the other.", "Crop it."
    )
    IMAGE_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway, vision",
        "The file is over `max_image_bytes` (gateway), or its pixels over `max_image_pixels` (vision service).",
        "Make the image smaller.",
    )
    ENCODING_TOO_SLOW = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "By the measured speed of the encoder the medium would not be encoded before the request's deadline. The "
        "message and the metadata `limit` tell how many pixels would be.",
        "Ask for fewer pixels (`max_pixels`, `max_video_pixels`, `detail`), or give the request more time.",
    )
    IMAGE_TOO_MANY_PATCHES = ReasonInfo(
        Code.RESOURCE_EXHAUSTED, "vision", "After resizing it has over `max_patches` patches.", "Lower `max_pixels`."
    )
    VIDEO_UNREADABLE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "No video of a known container, damaged, or of an unknown codec.",
        "Send MP4, MOV, WebM, MKV or AVI.",
    )
    VIDEO_TRUNCATED = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "The video ends long before its header says.", "Send all of it."
    )
    VIDEO_WITHOUT_PICTURES = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "The file has only sound or text, or a cover picture.", "Send a video."
    )
    VIDEO_ASPECT_RATIO = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "One side of the frames is over 200 times the other.", "Crop it."
    )
    VIDEO_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway, vision",
        "The file is over `max_video_bytes` (gateway), or a frame over `max_video_pixels` (vision service).",
        "Make the video smaller.",
    )
    VIDEO_TOO_LONG = ReasonInfo(Code.RESOURCE_EXHAUSTED, "vision", "Over `max_video_seconds`.", "Cut it.")
    VIDEO_TOO_MANY_FRAMES = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "Over `max_video_frames` in the file, or `max_sampled_frames` looked at.",
        "Cut it, or lower `fps` or `max_frames`.",
    )
    VIDEO_TOO_MANY_PATCHES = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "After sampling and resizing it has over `max_patches` patches.",
        "Lower `max_video_pixels`.",
    )

    # The servers
    QUEUE_FULL = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision, decoder",
        "As many requests are running or waiting as the service holds.",
        "Try again after the delay; add replicas.",
        waits=True,
    )
    ENCODER_BUSY = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "The medium alone would be encoded in time, but not after what waits before it.",
        "Try again after the delay; add vision replicas.",
        waits=True,
    )
    FEATURE_MEMORY_FULL = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "decoder",
        "The features of all running requests together would pass `max_buffered_feature_bytes`.",
        "Try again after the delay.",
        waits=True,
    )
    TOO_MANY_CALLS = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "any",
        "Over `max_concurrent_rpcs` of the gateway (HTTP) or of the service behind it.",
        "Try again after the delay.",
        waits=True,
    )
    OUT_OF_MEMORY = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "The encoder's device has no memory for this medium.",
        "Lower `max_pixels` or `max_video_pixels`.",
    )
    VISION_UNAVAILABLE = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "No vision service answered, after `encode_attempts`.",
        "Look at its log and health; try again after the delay.",
        waits=True,
    )
    DECODER_UNAVAILABLE = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "No decoder answered after `decode_attempts`, or the one that wrote the answer was lost in the middle of it.",
        "Try again after the delay. After a loss midway the deltas that came are a true beginning of the answer.",
        waits=True,
    )
    DEADLINE_EXCEEDED = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "gateway",
        "The request was not answered in its time.",
        "Allow more time, or ask for fewer tokens.",
    )
    MEDIA_TIMEOUT = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "decoder",
        "For `media_timeout` nothing came about media that are to be encoded, not even how far they are.",
        "Look at the vision service and at the network between it and the gateway.",
    )
    ENCODER_MISMATCH = ReasonInfo(
        Code.FAILED_PRECONDITION,
        "decoder",
        "A vision service has another encoder than the decoder's model, or computes in another type than the others.",
        "Start all services from bundles of one checkpoint, and all vision services with one `dtype`.",
    )
    ENCODER_SETTINGS_DIFFER = ReasonInfo(
        Code.FAILED_PRECONDITION,
        "vision",
        "Vision replicas differ in their type or in their default budget.",
        "Start all of them with the same `dtype` and `default_max_…`.",
        waits=True,
    )
    TEMPLATE_MISMATCH = ReasonInfo(
        Code.INTERNAL,
        "decoder",
        "The chat template did not write one placeholder for each medium.",
        "Check the template in the bundle.",
    )
    ENGINE_FAILED = ReasonInfo(
        Code.INTERNAL,
        "decoder",
        "The engine failed on this request and goes on.",
        "The decoder's log has the traceback: report it.",
    )
    VISION_PROTOCOL = ReasonInfo(
        Code.INTERNAL,
        "gateway",
        "A vision service does not keep to the protocol.",
        "Run one version of Triptych everywhere.",
    )
    DECODER_PROTOCOL = ReasonInfo(
        Code.INTERNAL,
        "gateway",
        "A decoder does not keep to the protocol, or refused what the vision service made.",
        "Run one version of Triptych everywhere.",
    )
    INTERNAL = ReasonInfo(
        Code.INTERNAL, "any", "An unexpected failure.", "The server's log has the traceback: report it."
    )

    # Between the services only: clients see VISION_UNAVAILABLE, DECODER_UNAVAILABLE or DECODER_PROTOCOL.
    SHUTTING_DOWN = ReasonInfo(
        Code.UNAVAILABLE,
        "vision",
        "A vision service stops while requests wait in it.",
        "Nothing: the gateway tries another replica.",
        waits=True,
        internal=True,
    )
    ENGINE_NOT_READY = ReasonInfo(
        Code.UNAVAILABLE,
        "decoder",
        "The engine is being started again.",
        "Nothing: the gateway tries again.",
        waits=True,
        internal=True,
    )
    ENGINE_LOST = ReasonInfo(
        Code.UNAVAILABLE,
        "decoder",
        "The engine broke, or its process died, during this request or while it waited.",
        "Look into the decoder's log; an exit code of -9 is mostly memory.",
        waits=True,
        internal=True,
    )
    FEATURES_INCOMPLETE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "The features ended before the last byte.",
        "A caller of `Decoder.Generate` must send all that it announced.",
        internal=True,
    )
    CANCELLED = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "A server gave a call up, as when it goes away.",
        "Nothing: it counts as UNAVAILABLE.",
        waits=True,
        internal=True,
    )

    @property
    def code(self) -> Code:
        """The canonical status code that it comes with."""
        return self.value.code


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


def failure(
    reason: Reason,
    message: str,
    *,
    violations: tuple[Violation, ...] = (),
    retry_after: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ServiceError:
    """A failure for one of Triptych's own reasons, with that reason's code. Arguments as for `ServiceError`."""
    return ServiceError(
        reason.code, reason.name, message, violations=violations, retry_after=retry_after, metadata=metadata
    )


def field_failure(
    reason: Reason,
    path: str,
    description: str,
    *,
    retry_after: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ServiceError:
    """A failure for what is wrong with one field.

    Args:
        reason: Stable name for programs.
        path: Path of the field in the request.
        description: What is wrong and how to mend it.
        retry_after: As in `ServiceError`.
        metadata: As in `ServiceError`.
    """
    violations = (Violation(path, description),)
    message = sentence(violations)
    return failure(reason, message, violations=violations, retry_after=retry_after, metadata=metadata)


def sentence(violations: Iterable[Violation]) -> str:
    """The message of a failure, made from the fields at fault."""
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)


def invalid(path: str, description: str, *, reason: Reason = Reason.FIELD_INVALID) -> ServiceError:
    """INVALID_ARGUMENT for one field. Arguments as for `field_failure`."""
    return field_failure(reason, path, description)


def unimplemented(path: str, instead: str) -> ServiceError:
    """UNIMPLEMENTED for a field of the wire that does nothing yet.

    Args:
        path: Path of the field in the request.
        instead: What to do instead, as in `send the image's bytes in data`.
    """
    return field_failure(Reason.FIELD_UNIMPLEMENTED, path, f"is not supported by this version; {instead}")


def too_large(path: str, description: str, *, reason: Reason, limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED for one field that passes a limit.

    Args:
        path: Path of the field in the request.
        description: What is too much, and what the limit is.
        reason: Stable name for programs.
        limit: The limit, for programs.
    """
    return field_failure(reason, path, description, metadata={"limit": str(limit)})


def overloaded(reason: Reason, message: str, *, retry_after: float) -> ServiceError:
    """RESOURCE_EXHAUSTED because the server is full now.

    Args:
        reason: Stable name for programs.
        message: What is full, and how full.
        retry_after: Seconds after which another try may succeed.
    """
    return failure(reason, message, retry_after=retry_after)


def unavailable(reason: Reason, message: str, *, retry_after: float = 1.0) -> ServiceError:
    """UNAVAILABLE: the same request may succeed elsewhere or later. Arguments as for `failure`."""
    return failure(reason, message, retry_after=retry_after)


def unexpected() -> ServiceError:
    """INTERNAL: a bug. The exception itself is only logged."""
    return failure(Reason.INTERNAL, "an unexpected failure; the server's log says more")
