"""From OpenAI's JSON to a ChatRequest, and from the names of its fields back to those of the JSON."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from gateway.http.media import options_of
from gateway.http.schema import (
    NEUTRAL,
    NEUTRAL_IN_MEDIA_IO,
    NEUTRAL_IN_MESSAGE,
    NEUTRAL_IN_PROCESSOR,
    NEUTRAL_IN_SIZE,
    NEUTRAL_IN_VIDEO_IO,
    Address,
    CompletionRequest,
    ImagePart,
    Message,
    TextPart,
    VideoPart,
)
from serving.errors import Reason, ServiceError, invalid, unimplemented
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
}
_DETAILS = {"low": media_pb2.DETAIL_LOW, "original": media_pb2.DETAIL_ORIGINAL}
"""Others are the request's own options, or the default."""

_TRANSLATED = {"max_tokens", "top_k", "logprobs", "stop", "response_format"}
"""Options that JSON and wire have by one name with different meanings or types, or that are refused."""

_SAME_OPTIONS = sorted(
    set(chat_pb2.GenerationOptions.DESCRIPTOR.fields_by_name) & set(CompletionRequest.model_fields) - _TRANSLATED
)
"""Options that JSON and wire have by one name and with one meaning; unset is None in the JSON."""

_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_SLICE_CHARACTERS = 1 << 20  # a multiple of 4


def parse(body: bytes) -> CompletionRequest:
    """Read the body of a request.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED that names the field as the JSON does.
    """
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from error
    _check_neutral(request, NEUTRAL, "")
    for i, message in enumerate(request.messages):
        _check_neutral(message, NEUTRAL_IN_MESSAGE, f"messages[{i}].")
    if processor := request.mm_processor_kwargs:
        _check_neutral(processor, NEUTRAL_IN_PROCESSOR, "mm_processor_kwargs.")
        if processor.size:
            _check_neutral(processor.size, NEUTRAL_IN_SIZE, "mm_processor_kwargs.size.")
    if files := request.media_io_kwargs:
        _check_neutral(files, NEUTRAL_IN_MEDIA_IO, "media_io_kwargs.")
        if files.video:
            _check_neutral(files.video, NEUTRAL_IN_VIDEO_IO, "media_io_kwargs.video.")
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "is only allowed where logprobs is true")
    return request


def _invalid(error: ValidationError) -> ServiceError:
    """The first complaint, in OpenAI's manner."""
    detail = error.errors(include_url=False, include_input=False)[0]
    path = ""
    for step in detail["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(("<", "[")):  # "[key]" says that a key is at fault, whose name stands before it
            path += f".{step}" if path else step
    if detail["type"] == "extra_forbidden":
        return invalid(path, "is not known here", reason=Reason.UNKNOWN_FIELD)
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return invalid(path or "body", message)


def _check_neutral(json: BaseModel, neutral: Mapping[str, tuple[Any, ...]], prefix: str) -> None:
    for name, values in neutral.items():
        value = getattr(json, name)
        # True == 1, but it is another value in JSON.
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
            raise unimplemented(f"{prefix}{name}", "leave it out")


def to_chat(request: CompletionRequest, request_id: str) -> gateway_pb2.ChatRequest:
    """The same request on the wire's terms: message by message and part by part in the same places.

    Takes time for large media: call it on a thread.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED that names the field as the JSON does.
    """
    generation = chat_pb2.GenerationOptions(
        **{name: getattr(request, name) for name in _SAME_OPTIONS},
        stop=[request.stop] if isinstance(request.stop, str) else request.stop,
    )
    if request.logprobs:
        generation.logprobs = request.top_logprobs or 0
    if request.top_k is not None:
        generation.top_k = max(request.top_k, 0)  # -1 is vLLM's way to say that there is no limit
    limit = asked_tokens(request)
    if limit is not None:
        generation.max_tokens = limit
        generation.clamp_max_tokens = True  # OpenAI's is an upper bound, and tools send any large number
    media = {field: option.value for field, option in options_of(request).items()}
    return gateway_pb2.ChatRequest(
        model=request.model,
        messages=[_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)],
        generation=generation,
        media=media_pb2.MediaOptions(**media) if media else None,  # type: ignore[arg-type]  # each of its field's type
        request_id=request_id,
        report_progress=bool(request.stream),
    )


def asked_tokens(request: CompletionRequest) -> int | None:
    """Most tokens of the answer, where the request names a bound."""
    return request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens


def _message(message: Message, path: str) -> chat_pb2.Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise unimplemented(f"{path}.role", "use system, user or assistant")
    if message.content is None:
        raise invalid(f"{path}.content", "is missing")
    if isinstance(message.content, str):
        return chat_pb2.Message(role=role, parts=[chat_pb2.Part(text=message.content)])
    parts = [_part(part, f"{path}.content[{j}]") for j, part in enumerate(message.content)]
    return chat_pb2.Message(role=role, parts=parts)


def _part(part: TextPart | ImagePart | VideoPart, path: str) -> chat_pb2.Part:
    match part:
        case TextPart():
            return chat_pb2.Part(text=part.text)
        case ImagePart():
            return chat_pb2.Part(image=_media(part.image_url, f"{path}.image_url"))
        case VideoPart():
            return chat_pb2.Part(video=_media(part.video_url, f"{path}.video_url"))


def _media(address: Address, path: str) -> media_pb2.Media:
    if re.match("https?:", address.url, re.IGNORECASE):
        raise unimplemented(f"{path}.url", "put the file into a data: URL (data:image/png;base64,…)")
    head = _DATA_URL.match(address.url)
    if head is None:
        raise invalid(f"{path}.url", "must be a data: URL with base64 (data:image/png;base64,…)")
    detail = _DETAILS.get(address.detail or "auto")
    return media_pb2.Media(
        data=_base64(address.url, head.end(), f"{path}.url"),
        options=None if detail is None else media_pb2.MediaOptions(detail=detail),
    )


def _base64(text: str, begin: int, path: str) -> bytes:
    """Decode in slices, so that other threads come to their turn in between."""
    out = bytearray()
    try:
        for at in range(begin, len(text), _SLICE_CHARACTERS):
            out += base64.b64decode(text[at : at + _SLICE_CHARACTERS], validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(path, "is not valid base64") from error
    return bytes(out)


class JsonNames:
    """Names of fields of the ChatRequest, as the client's JSON has them.

    Args:
        request: The client's JSON.
    """

    def __init__(self, request: CompletionRequest) -> None:
        self._strings = [isinstance(message.content, str) for message in request.messages]
        self._max_tokens = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        self._media = {f"media.{field}": option.name for field, option in options_of(request).items()}

    def __call__(self, path: str) -> str:
        """The name in the JSON; a path that is in it already stays as it is."""
        if path == "generation.max_tokens":
            return self._max_tokens
        if path == "generation.logprobs":  # on the wire it is how many, in the JSON whether
            return "top_logprobs"
        if re.match(r"media\b", path):
            return self._media.get(path, f"mm_processor_kwargs{path.removeprefix('media')}")
        path = path.removeprefix("generation.")
        match = re.match(r"(messages\[(\d+)\])\.parts(\[\d+\])?", path)
        if match is None:
            return path
        number = int(match[2])
        if number < len(self._strings) and self._strings[number]:
            return f"{match[1]}.content"
        rest = re.sub(r"^\.(image|video)\b", r".\1_url", path[match.end() :])
        rest = re.sub(r"\.options\b.*", ".detail", rest)  # a medium's own options come from nothing else
        return f"{match[1]}.content{match[3] or ''}{rest}"
