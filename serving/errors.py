"""The errors that a client may get. Independent of gRPC: `serving.status` converts them to messages."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Code(enum.Enum):
    """The canonical status codes that Triptych uses, with the names of google.rpc.Code."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, eq=False)  # by identity: an enum would make equal values one member
class ReasonInfo:
    """The properties of a reason.

    Attributes:
        code: The canonical status code of its errors.
        raised_by: The services that raise it, as in `vision, decoder`; `any` for all.
        meaning: Explanation, for people.
        advice: The remedy.
        waits: Whether the error has a retry delay.
        internal: Whether it is used only between the services.
        elsewhere: Whether a replica refuses for it before it works on a call, so that another may take it at once.
    """

    code: Code
    raised_by: str
    meaning: str
    advice: str
    waits: bool = False
    internal: bool = False
    elsewhere: bool = False


class Reason(enum.Enum):
    """The stable reasons of errors. The member's name is sent; the value is documented in the pages' table."""

    # The request
    FIELD_INVALID = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "any",
        "A field has an invalid value. The violation names the field and the valid values.",
        "Correct the field.",
    )
    MESSAGE_MALFORMED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "any",
        "The message is not a protobuf of the method's type, or a string in it is not UTF-8 (gRPC); the request is not "
        "valid HTTP/1.1 (HTTP).",
        "Use a client that is generated from the protocol, or an HTTP library.",
    )
    FIELD_UNIMPLEMENTED = ReasonInfo(
        Code.UNIMPLEMENTED,
        "any",
        "A field that is not implemented yet is set.",
        "Leave it out; the message names the alternative.",
    )
    METHOD_UNIMPLEMENTED = ReasonInfo(
        Code.UNIMPLEMENTED, "gateway", "A call that is not implemented yet.", "Send the bytes of each file."
    )
    NOT_SERVED = ReasonInfo(
        Code.NOT_FOUND,
        "gateway",
        "HTTP: no such path, or not with this method (status 405).",
        "Use a path of the HTTP API, such as `/v1/chat/completions`.",
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
        "The request names another model than the served one.",
        "Leave `model` empty, or list them.",
    )
    FORM_INVALID = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "The schema, regular expression or grammar of `response_format` cannot be compiled.",
        "Read the compiler's sentence; unsupported keywords must be left out.",
    )
    TEMPLATE_REFUSES = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "The model's chat template raised an error for these messages.",
        "See the message.",
    )
    MEDIA_NOT_SUPPORTED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "gateway, vision, decoder",
        "The request has an image or a video, and the model does not take it. Nothing was encoded.",
        "Send what the model takes, or use one whose `images` or `video` is true (`ListModels`, `/v1/models`).",
    )
    THINKING_NOT_OPTIONAL = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "`enable_thinking` asks a model that always thinks not to, or one that never does to do so: its chat template "
        "has no such choice.",
        "Leave it out.",
    )
    CLIENT_NOT_ALLOWED = ReasonInfo(
        Code.PERMISSION_DENIED,
        "any",
        "The client's certificate has none of the names in `tls_client_names`.",
        "Use a certificate with such a name, or add its name to the setting.",
    )

    # Too much
    BODY_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "any",
        "The body (HTTP) or the message (gRPC) is over `max_message_bytes`. gRPC itself refuses the message, without "
        "details; the Python client adds the reason.",
        "Send fewer or smaller media; in JSON, base64 adds a third.",
    )
    HEADERS_TOO_LARGE = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway",
        "HTTP: the request's line and headers are over 16 KiB, or over 100 headers (status 431).",
        "Send fewer or shorter headers, such as cookies.",
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
        "Join adjacent texts.",
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
        "`max_tokens` is over the free tokens of the context. The prompt is counted as far as it is known: a medium "
        "whose size has not arrived yet counts as one token. Over HTTP the number is reduced instead.",
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
        "An announced tensor is over the limit of its field.",
        "As for FEATURES_TOO_LARGE.",
    )

    # The client
    KEY_MISSING = ReasonInfo(
        Code.UNAUTHENTICATED,
        "gateway",
        "The gateway has `keys_file` set, and the call brought no API key.",
        "Send `Authorization: Bearer tpk_…` or `x-api-key: tpk_…`, over gRPC as metadata; `api_key` of the clients.",
    )
    KEY_INVALID = ReasonInfo(
        Code.UNAUTHENTICATED,
        "gateway",
        "The API key is unknown, was revoked, or has expired. The status over HTTP is 401, the code `invalid_api_key`.",
        "Ask whoever runs the gateway for a key (`triptych key new`).",
    )
    KEY_ROLE = ReasonInfo(
        Code.PERMISSION_DENIED,
        "gateway",
        "The API key has another role than the call needs: `user` for requests, `metrics` for `/metrics`, `admin` for "
        "reflection; `admin` may do everything.",
        "Use a key with that role.",
    )
    TOO_MANY_OF_CLIENT = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway",
        "This client, a key or without keys an address, has `max_requests_per_client` requests running, or as many as "
        "its key allows.",
        "Wait for one of them, or try again after the delay.",
        waits=True,
    )
    RATE_LIMITED = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway",
        "This client is over its requests or tokens per minute.",
        "Try again after the delay: from then on one request is taken.",
        waits=True,
    )

    # Images and video
    MEDIA_EMPTY = ReasonInfo(
        Code.INVALID_ARGUMENT, "vision", "A file of no bytes reached the vision service.", "Send the file."
    )
    IMAGE_UNREADABLE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "Not an image of a known format, or damaged. The message names the format if the file's first bytes tell.",
        "Do what the message says: convert it, or send one of the formats that it lists.",
    )
    IMAGE_TRUNCATED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "The image is truncated. A JPEG that lacks only the marker of its end is not.",
        "Send all of it.",
    )
    IMAGE_MODE_UNSUPPORTED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "32-bit or floating-point pixels, for which no white level is defined.",
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
        "At the measured speed of the encoder the medium would not be encoded before the request's deadline. The "
        "message and the metadata `limit` give the number of pixels that would be.",
        "Ask for fewer pixels (`max_pixels`, `max_video_pixels`, `detail`), or give the request more time.",
    )
    IMAGE_TOO_MANY_PATCHES = ReasonInfo(
        Code.RESOURCE_EXHAUSTED, "vision", "After resizing it has over `max_patches` patches.", "Lower `max_pixels`."
    )
    VIDEO_UNREADABLE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "No video of a known container, damaged, or of an unknown codec; or a still image. The message names the "
        "format if the file's first bytes tell.",
        "Send MP4, MOV, WebM, MKV, AVI, GIF, animated PNG or WebP, or JPEGs one after another.",
    )
    VIDEO_TRUNCATED = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "vision",
        "The video is much shorter than its header states, or a GIF or another image that moves breaks off.",
        "Send all of it.",
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
        "Over `max_video_frames` in the file, or over `max_sampled_frames` sampled.",
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
        "The limit of running and waiting requests is reached.",
        "Try again after the delay; add replicas.",
        waits=True,
        elsewhere=True,
    )
    ENCODER_BUSY = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision",
        "The medium alone would be encoded in time, but not after those that wait before it.",
        "Try again after the delay; add vision replicas.",
        waits=True,
        elsewhere=True,
    )
    DECODER_BUSY = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "decoder",
        "By the measured duration of requests, those before this one would still be running at its deadline.",
        "Try again after the delay; add decoder replicas; or give the request more time.",
        waits=True,
        elsewhere=True,
    )
    FEATURE_MEMORY_FULL = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "decoder",
        "The features of all running requests together would exceed `max_buffered_feature_bytes`.",
        "Try again after the delay.",
        waits=True,
        elsewhere=True,
    )
    TOO_MANY_CALLS = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "any",
        "Over `max_concurrent_rpcs` of the gateway or of the service behind it.",
        "Try again after the delay.",
        waits=True,
        elsewhere=True,
    )
    BODY_MEMORY_FULL = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "gateway",
        "HTTP: the bodies that are being received would together exceed `max_buffered_body_bytes`.",
        "Try again after the delay.",
        waits=True,
    )
    RECEIVE_TIMEOUT = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "any",
        "The body (HTTP, status 408) or the message (gRPC) did not arrive within `receive_timeout_seconds` and the "
        "time that its size allows.",
        "Use a faster connection, or send smaller media.",
    )
    SEND_TIMEOUT = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "any",
        "gRPC: the client took nothing of the answer for `send_timeout_seconds`. Over HTTP the connection is reset.",
        "Read the answer while it comes.",
    )
    OUT_OF_MEMORY = ReasonInfo(
        Code.RESOURCE_EXHAUSTED,
        "vision, decoder",
        "The service could not allocate memory for this request; it continues with others.",
        "Lower `max_pixels` or `max_video_pixels`, shorten the prompt, or give the service more memory.",
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
        "No decoder answered after `decode_attempts`, or the decoder failed in the middle of the answer.",
        "Try again after the delay. After a failure in the middle, the received deltas are a valid beginning.",
        waits=True,
    )
    DEADLINE_EXCEEDED = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "gateway",
        "The request was not finished before its deadline.",
        "Allow more time, or ask for fewer tokens.",
    )
    MEDIA_TIMEOUT = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "decoder",
        "No message about media that are being encoded arrived within `media_timeout`, not even progress; or within "
        "10 seconds, while other requests found no place.",
        "Look at the vision service and at the network between it and the gateway.",
    )
    ENCODER_MISMATCH = ReasonInfo(
        Code.FAILED_PRECONDITION,
        "decoder",
        "A vision service has another encoder than the decoder's model, or another type than the others.",
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
        "The engine failed on this request; it continues with others.",
        "The decoder's log has the traceback: report it.",
    )
    FEATURES_NOT_FINITE = ReasonInfo(
        Code.INTERNAL,
        "vision, decoder",
        "The features of a medium contain infinities or NaN, also when they were computed a second time. They are not "
        "cached.",
        "If one vision replica alone does so, replace it; if all do, start them with `--dtype float32`.",
    )
    LOGITS_NOT_FINITE = ReasonInfo(
        Code.INTERNAL,
        "decoder",
        "The model's logits for this request contain infinities or NaN. Its prompt and its features are removed from "
        "the caches.",
        "Try once more; if it happens again, export the model with another recipe and report it.",
    )
    VISION_PROTOCOL = ReasonInfo(
        Code.INTERNAL,
        "gateway",
        "A vision service violated the protocol.",
        "Run one version of Triptych everywhere.",
    )
    DECODER_PROTOCOL = ReasonInfo(
        Code.INTERNAL,
        "gateway",
        "A decoder violated the protocol, or refused the features of the vision service.",
        "Run one version of Triptych everywhere.",
    )
    INTERNAL = ReasonInfo(
        Code.INTERNAL, "any", "An unexpected error.", "The server's log has the traceback: report it."
    )

    # Between the services only: clients see VISION_UNAVAILABLE, DECODER_UNAVAILABLE or DECODER_PROTOCOL.
    SHUTTING_DOWN = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway, vision",
        "A replica is not SERVING any more, and nothing of the call's result had been passed on; or a vision service "
        "stopped.",
        "Nothing: the gateway tries another replica.",
        waits=True,
        internal=True,
        elsewhere=True,
    )
    ENGINE_NOT_READY = ReasonInfo(
        Code.UNAVAILABLE,
        "decoder",
        "The engine is being started again.",
        "Nothing: the gateway tries again.",
        waits=True,
        internal=True,
        elsewhere=True,
    )
    ENGINE_LOST = ReasonInfo(
        Code.UNAVAILABLE,
        "decoder",
        "The engine failed, or its process died, during this request or while it waited.",
        "Look at the decoder's log; exit code -9 usually means out of memory.",
        waits=True,
        internal=True,
    )
    REPLICA_LOST = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "A replica stopped answering: its process or its network stands still, or a call got no first message.",
        "Nothing: the gateway tries another replica. Look at that replica's process and network.",
        waits=True,
        internal=True,
    )
    NO_REPLICA = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "No replica of a tier is healthy and answers.",
        "Look at the health of the replicas, and at the address of the tier.",
        waits=True,
        internal=True,
    )
    OPENING_TIMEOUT = ReasonInfo(
        Code.DEADLINE_EXCEEDED,
        "decoder",
        "A `Generate` stream sent no message for 10 seconds.",
        "A caller of `Decoder.Generate` must send `open` at once.",
        internal=True,
    )
    FEATURES_INCOMPLETE = ReasonInfo(
        Code.INVALID_ARGUMENT,
        "decoder",
        "The features ended before the last byte.",
        "A caller of `Decoder.Generate` must send all announced bytes.",
        internal=True,
    )
    CANCELLED = ReasonInfo(
        Code.UNAVAILABLE,
        "gateway",
        "A server cancelled the call, for example at shutdown.",
        "Nothing: it counts as UNAVAILABLE.",
        waits=True,
        internal=True,
    )

    @property
    def code(self) -> Code:
        """The canonical status code of its errors."""
        return self.value.code


@dataclass(frozen=True)
class Violation:
    """An error in one field.

    Attributes:
        field: Path of the field in the request, as in `messages[0].parts[1].image`.
        description: The error and its remedy, one sentence.
    """

    field: str
    description: str


class ServiceError(Exception):
    """An error with all information for the client.

    Attributes:
        code: The canonical status code.
        reason: Stable name of the error for programs, as in `IMAGE_UNREADABLE`.
        message: One sentence for people.
        violations: The fields at fault.
        retry_after: Seconds after which a retry may succeed; None if a retry is useless.
        metadata: Further values for programs, such as the exceeded limit.
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
    """Make an error with one of Triptych's reasons and its code. Arguments as for `ServiceError`."""
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
    """Make an error about one field.

    Args:
        reason: Stable name for programs.
        path: Path of the field in the request.
        description: The error and its remedy.
        retry_after: As in `ServiceError`.
        metadata: As in `ServiceError`.
    """
    violations = (Violation(path, description),)
    message = sentence(violations)
    return failure(reason, message, violations=violations, retry_after=retry_after, metadata=metadata)


def sentence(violations: Iterable[Violation]) -> str:
    """The message of an error, made from its violations."""
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)


def invalid(path: str, description: str, *, reason: Reason = Reason.FIELD_INVALID) -> ServiceError:
    """INVALID_ARGUMENT for one field. Arguments as for `field_failure`."""
    return field_failure(reason, path, description)


def unimplemented(path: str, instead: str) -> ServiceError:
    """UNIMPLEMENTED for a field that is not implemented yet.

    Args:
        path: Path of the field in the request.
        instead: The alternative, as in `send the image's bytes in data`.
    """
    return field_failure(Reason.FIELD_UNIMPLEMENTED, path, f"is not supported by this version; {instead}")


def too_large(path: str, description: str, *, reason: Reason, limit: int) -> ServiceError:
    """RESOURCE_EXHAUSTED for one field that exceeds a limit.

    Args:
        path: Path of the field in the request.
        description: The value and the limit.
        reason: Stable name for programs.
        limit: The limit, for programs.
    """
    return field_failure(reason, path, description, metadata={"limit": str(limit)})


def overloaded(reason: Reason, message: str, *, retry_after: float) -> ServiceError:
    """RESOURCE_EXHAUSTED because the server is full.

    Args:
        reason: Stable name for programs.
        message: What is full, and its size.
        retry_after: Seconds after which a retry may succeed.
    """
    return failure(reason, message, retry_after=retry_after)


def unavailable(reason: Reason, message: str, *, retry_after: float = 1.0) -> ServiceError:
    """UNAVAILABLE: the same request may succeed elsewhere or later. Arguments as for `failure`."""
    return failure(reason, message, retry_after=retry_after)


def unexpected() -> ServiceError:
    """INTERNAL: a bug. The exception itself is only logged."""
    return failure(Reason.INTERNAL, "an unexpected failure; the server's log says more")
