"""The stable reasons of failures: what each means and what to do. Code, status and place are read from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.http.errors import status_of
from serving.errors import Code, ServiceError
from tools.docs.tables import table

PACKAGES = ("gateway", "vision_service", "decoder_service", "serving")
_ROOT = Path(__file__).parents[2]

_TELLTALE = re.compile(r"[A-Z]+(_[A-Z]+)+")

_FILLED_IN = "(IMAGE|VIDEO|VISION|DECODER)"
"""What stands for a part of a reason that is filled in at run time: a kind of media or a tier."""

_BY_HELPER = {
    "invalid": Code.INVALID_ARGUMENT,
    "too_large": Code.RESOURCE_EXHAUSTED,
    "overloaded": Code.RESOURCE_EXHAUSTED,
    "unavailable": Code.UNAVAILABLE,
}
"""Helpers of `serving.errors` and the code that they give."""

_WAIT = {"overloaded", "unavailable"}
"""Of these, the ones that send a delay."""


@dataclass(frozen=True)
class Advice:
    """What a reason tells a person.

    Attributes:
        meaning: What went wrong.
        do: What to do.
    """

    meaning: str
    do: str


CLIENT: Mapping[str, Advice] = {
    # The request
    "FIELD_INVALID": Advice(
        "A field has a value that cannot be. The violation names it and says what may be there.", "Correct the field."
    ),
    "FIELD_UNIMPLEMENTED": Advice(
        "A field of the wire that does nothing yet is set.", "Leave it out; the message says what to use instead."
    ),
    "METHOD_UNIMPLEMENTED": Advice("A call that does nothing yet.", "Send the bytes of each file in its message."),
    "UNKNOWN_FIELD": Advice("HTTP: a field of the JSON that neither OpenAI nor Triptych knows.", "Leave it out."),
    "NOT_SERVED": Advice(
        "HTTP: no such path, or not with this method (then the status is 405).",
        "Use `/v1/chat/completions`, `/v1/models` or `/healthz`.",
    ),
    "ROLE_UNKNOWN": Advice(
        "A message's role is not set or not in the enum.", "Use `ROLE_SYSTEM`, `ROLE_USER` or `ROLE_ASSISTANT`."
    ),
    "MODEL_NOT_FOUND": Advice("Another model than the served one was asked for.", "Leave `model` empty, or list them."),
    "TEMPLATE_REFUSES": Advice("The model's chat template raised an error for these messages.", "Read its sentence."),
    # Too much
    "BODY_TOO_LARGE": Advice(
        "HTTP: the body is over `max_message_bytes`.", "Send fewer or smaller media; base64 adds a third."
    ),
    "TOO_MANY_MESSAGES": Advice("Over `max_messages` of the gateway, or over the decoder's 1,024.", "Drop old turns."),
    "TOO_MANY_PARTS": Advice(
        "Over `max_parts` of the gateway, or over the decoder's 16,384.", "Join neighbouring texts."
    ),
    "TOO_MANY_MEDIA": Advice("Over `max_media_per_request` or `max_prompt_media`.", "Send fewer, or raise both."),
    "TEXT_TOO_LONG": Advice("The text is over `max_text_bytes` of the decoder.", "Shorten it."),
    "PROMPT_TOO_LONG": Advice(
        "Text and media leave no room for an answer in the context.",
        "Shorten the text; lower `max_pixels`, `fps` or `max_frames`; or raise the decoder's `context_length` or "
        "`kv_cache_bytes`.",
    ),
    "MAX_TOKENS_TOO_LARGE": Advice(
        "`max_tokens` is over what the prompt leaves free. The count is of the prompt as far as it was known: a medium "
        "whose size had not come yet counts as one token.",
        "Lower it, or leave it out.",
    ),
    "FEATURES_TOO_LARGE": Advice(
        "The features of this request are over `max_feature_bytes`.", "Send smaller or fewer media."
    ),
    "TENSOR_TOO_LARGE": Advice("An announced tensor is over what its place allows.", "As for FEATURES_TOO_LARGE."),
    # Images and video
    "MEDIA_EMPTY": Advice("A file of no bytes reached the vision service.", "Send the file."),
    "IMAGE_UNREADABLE": Advice(
        "Not an image of a known format, or damaged.", "Send one of the formats that the message lists."
    ),
    "IMAGE_TRUNCATED": Advice("The image breaks off before its end.", "Send all of it."),
    "IMAGE_MODE_UNSUPPORTED": Advice(
        "32-bit or floating-point pixels, which have no agreed white.", "Convert it to 8-bit RGB."
    ),
    "IMAGE_ASPECT_RATIO": Advice("One side is over 200 times the other.", "Crop it."),
    "IMAGE_TOO_LARGE": Advice(
        "The file is over `max_image_bytes` (gateway), or its pixels over `max_image_pixels` (vision service).",
        "Make the image smaller.",
    ),
    "ENCODING_TOO_SLOW": Advice(
        "By the measured speed of the encoder the medium would not be encoded before the request's deadline. The "
        "message and the metadata `limit` tell how many pixels would be.",
        "Ask for fewer pixels (`max_pixels`, `max_video_pixels`, `detail`), or give the request more time.",
    ),
    "IMAGE_TOO_MANY_PATCHES": Advice("After resizing it has over `max_patches` patches.", "Lower `max_pixels`."),
    "VIDEO_UNREADABLE": Advice(
        "No video of a known container, damaged, or of an unknown codec.", "Send MP4, MOV, WebM, MKV or AVI."
    ),
    "VIDEO_TRUNCATED": Advice("The video ends long before its header says.", "Send all of it."),
    "VIDEO_WITHOUT_PICTURES": Advice("The file has only sound or text, or a cover picture.", "Send a video."),
    "VIDEO_ASPECT_RATIO": Advice("One side is over 200 times the other.", "Crop it."),
    "VIDEO_TOO_LARGE": Advice(
        "The file is over `max_video_bytes` (gateway), or a frame over `max_video_pixels` (vision service).",
        "Make the video smaller.",
    ),
    "VIDEO_TOO_LONG": Advice("Over `max_video_seconds`.", "Cut it."),
    "VIDEO_TOO_MANY_FRAMES": Advice(
        "Over `max_video_frames` in the file, or `max_sampled_frames` looked at.",
        "Cut it, or lower `fps` or `max_frames`.",
    ),
    "VIDEO_TOO_MANY_PATCHES": Advice(
        "After sampling and resizing it has over `max_patches` patches.", "Lower `max_video_pixels`."
    ),
    # The servers
    "QUEUE_FULL": Advice(
        "As many requests are running or waiting as the service holds.", "Try again after the delay; add replicas."
    ),
    "ENCODER_BUSY": Advice(
        "The medium alone would be encoded in time, but not after what waits before it.",
        "Try again after the delay; add vision replicas.",
    ),
    "FEATURE_MEMORY_FULL": Advice(
        "The features of all running requests together would pass `max_buffered_feature_bytes`.",
        "Try again after the delay.",
    ),
    "TOO_MANY_CALLS": Advice(
        "Over `max_concurrent_rpcs` of the gateway (HTTP) or of the service behind it.", "Try again after the delay."
    ),
    "OUT_OF_MEMORY": Advice(
        "The encoder's device has no memory for this medium.", "Lower `max_pixels` or `max_video_pixels`."
    ),
    "VISION_UNAVAILABLE": Advice(
        "No vision service answered, after `encode_attempts`.", "Look at its log and health; try again after the delay."
    ),
    "DECODER_UNAVAILABLE": Advice(
        "No decoder answered after `decode_attempts`, or the one that wrote the answer was lost in the middle of it.",
        "Try again after the delay. After a loss midway the deltas that came are a true beginning of the answer.",
    ),
    "DEADLINE_EXCEEDED": Advice(
        "The request was not answered in its time.", "Allow more time, or ask for fewer tokens."
    ),
    "MEDIA_TIMEOUT": Advice(
        "For `media_timeout` nothing came about media that are to be encoded, not even how far they are.",
        "Look at the vision service and at the network between it and the gateway.",
    ),
    "ENCODER_MISMATCH": Advice(
        "A vision service has another encoder than the decoder's model, or computes in another type than the others.",
        "Start all services from bundles of one checkpoint, and all vision services with one `dtype`.",
    ),
    "ENCODER_SETTINGS_DIFFER": Advice(
        "Vision replicas differ in their type or in their default budget.",
        "Start all of them with the same `dtype` and `default_max_…`.",
    ),
    "TEMPLATE_MISMATCH": Advice(
        "The chat template did not write one placeholder for each medium.", "Check the template in the bundle."
    ),
    "ENGINE_FAILED": Advice(
        "The engine failed on this request and goes on.", "The decoder's log has the traceback: report it."
    ),
    "VISION_PROTOCOL": Advice(
        "A vision service does not keep to the protocol.", "Run one version of Triptych everywhere."
    ),
    "DECODER_PROTOCOL": Advice(
        "A decoder does not keep to the protocol, or refused what the vision service made.",
        "Run one version of Triptych everywhere.",
    ),
    "INTERNAL": Advice("An unexpected failure.", "The server's log has the traceback: report it."),
}
"""What clients of the gateway see."""

INSIDE: Mapping[str, Advice] = {
    "SHUTTING_DOWN": Advice(
        "A vision service stops while requests wait in it.", "Nothing: the gateway tries another replica."
    ),
    "ENGINE_NOT_READY": Advice("The engine is being started again.", "Nothing: the gateway tries again."),
    "ENGINE_LOST": Advice(
        "The engine broke, or its process died, during this request or while it waited.",
        "Look into the decoder's log; an exit code of -9 is mostly memory.",
    ),
    "FEATURES_INCOMPLETE": Advice(
        "The features ended before the last byte.", "A caller of `Decoder.Generate` must send all that it announced."
    ),
    "CANCELLED": Advice("A server gave a call up, as when it goes away.", "Nothing: it counts as UNAVAILABLE."),
}
"""What passes only between the services: clients see VISION_UNAVAILABLE, DECODER_UNAVAILABLE or DECODER_PROTOCOL."""


@dataclass(frozen=True)
class Raised:
    """One place in the code that fails for a reason.

    Attributes:
        pattern: The reason, as a regular expression.
        code: The canonical code.
        package: Where it is.
        waits: Whether a delay is sent.
    """

    pattern: str
    code: Code
    package: str
    waits: bool

    def is_of(self, reason: str) -> bool:
        """Whether this place may fail for `reason`."""
        return re.fullmatch(self.pattern, reason) is not None


def scan() -> list[Raised]:
    """Every place in the services that fails for a reason which the code spells out."""
    return [
        raised
        for package in PACKAGES
        for path in sorted((_ROOT / package).rglob("*.py"))
        for raised in _of_module(ast.parse(path.read_text(encoding="utf-8")), package)
    ]


def _of_module(module: ast.Module, package: str) -> Iterator[Raised]:
    for scope in ast.walk(module):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for call in ast.walk(scope):
            if isinstance(call, ast.Call) and (found := _of_call(call, scope)) is not None:
                code, patterns, waits = found
                yield from (Raised(pattern, code, package, waits) for pattern in patterns)


def _of_call(call: ast.Call, scope: ast.AST) -> tuple[Code, list[str], bool] | None:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "ServiceError" and len(call.args) > 1:
        code = call.args[0]
        if isinstance(code, ast.Attribute) and code.attr in Code.__members__:
            return Code[code.attr], _patterns(call.args[1], scope), "retry_after" in keywords
        return None
    if name not in _BY_HELPER:
        return None
    if name in _WAIT:
        reason = call.args[0] if call.args else None
    else:
        reason = keywords.get("reason", ast.Constant("FIELD_INVALID"))
    return _BY_HELPER[name], [] if reason is None else _patterns(reason, scope), name in _WAIT


def _patterns(reason: ast.expr, scope: ast.AST) -> list[str]:
    """The reasons that an expression may stand for."""
    match reason:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(p.value) if isinstance(p, ast.Constant) else _FILLED_IN for p in parts)]
        case ast.Name():  # a loop's variable: whatever the function spells out
            words = (node.value for node in ast.walk(scope) if isinstance(node, ast.Constant))
            return [word for word in words if isinstance(word, str) and _TELLTALE.fullmatch(word)]
    return []


def markdown() -> str:
    """Both tables."""
    places = scan()
    head = ("Reason", "Code", "HTTP", "From", "Meaning", "What to do")
    inside = [
        (_name(reason), *_facts(reason, places)[::2], advice.meaning, advice.do) for reason, advice in INSIDE.items()
    ]
    return "\n\n".join(
        (
            table(head, [(_name(r), *_facts(r, places), a.meaning, a.do) for r, a in CLIENT.items()]),
            "Between the services only:",
            table(("Reason", "Code", "From", "Meaning", "What to do"), inside),
        )
    )


def _name(reason: str) -> str:
    return f"`{reason}`"


def _facts(reason: str, places: list[Raised]) -> tuple[str, str, str]:
    """Code, HTTP status and place."""
    of_it = [place for place in places if place.is_of(reason)]
    statuses = {
        status_of(ServiceError(place.code, reason, "", retry_after=1.0 if place.waits else None)) for place in of_it
    }
    packages = [package for package in PACKAGES if any(place.package == package for place in of_it)]
    # What `serving` raises, every service may.
    names = "any" if "serving" in packages else ", ".join(package.removesuffix("_service") for package in packages)
    return ", ".join(sorted({place.code.value for place in of_it})), ", ".join(map(str, sorted(statuses))), names
