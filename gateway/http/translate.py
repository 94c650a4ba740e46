"""From OpenAI's JSON to a ChatRequest, and from the names of its fields back to those of the JSON."""

from __future__ import annotations

import codecs
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gateway.http import data_url
from gateway.http.formats import form_of
from gateway.http.media import options_of
from gateway.http.schema import (
    Address,
    CompletionRequest,
    ImagePart,
    Message,
    Options,
    RefusalPart,
    TextCompletionRequest,
    TextPart,
    VideoPart,
)
from gateway.http.surrogates import surrogate_in
from gateway.http.tools import call_id_of, calls_of, tool_choice_of, tool_names, tools_of
from serving.errors import ServiceError, invalid, unimplemented
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2

_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_DETAILS = {"low": media_pb2.DETAIL_LOW, "original": media_pb2.DETAIL_ORIGINAL}
"""Others are the request's own options, or the default."""

_TRANSLATED = {"max_tokens", "top_k", "top_p", "logprobs", "stop", "response_format", "repetition_detection"}
"""Options that JSON and wire have by one name with different meanings or types, or that are refused."""

_SAME_OPTIONS = sorted(
    set(chat_pb2.GenerationOptions.DESCRIPTOR.fields_by_name) & set(Options.model_fields) - _TRANSLATED
)
"""Options that JSON and wire have by one name and with one meaning; unset is None in the JSON."""

_MOST_PROMPTS = 64

_DEFAULT_TEXT_TOKENS = 16
"""OpenAI's and vLLM's of `/v1/completions`."""

_LEAST_TOP_P = 1e-6
"""`top_p` 0 means the likeliest token to every OpenAI client; the wire wants a nucleus that is not empty."""


B = TypeVar("B", bound=BaseModel)
C = TypeVar("C", bound=CompletionRequest)


def validated(body: bytes, form: type[B]) -> B:
    """Read the body of a request.

    Raises:
        ServiceError: INVALID_ARGUMENT that names the field as the JSON does.
    """
    try:
        return form.model_validate_json(body.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise _invalid(error, body) from error


def parse(body: bytes) -> CompletionRequest:
    """Read the body of a request for a chat completion. Raises ServiceError as `parse_chat` does."""
    return parse_chat(body, CompletionRequest)


def parse_chat(body: bytes, form: type[C]) -> C:
    """Read the body of a request with messages.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED that names the field as the JSON does.
    """
    request = validated(body, form)
    if request.top_logprobs and not request.logprobs:
        raise invalid("top_logprobs", "is only allowed where logprobs is true")
    _check_continuation(request)
    return request


def _check_continuation(request: CompletionRequest) -> None:
    """Check the two fields for continuing: an answer continues the last message if that is the assistant's."""
    goes_on = bool(request.messages) and request.messages[-1].role == "assistant"
    if request.continue_final_message not in (None, goes_on):
        description = (
            "is false and the last message is the assistant's, which the answer goes on with; end with a user's message"
            if goes_on
            else "is true and the last message is not the assistant's; end with the message to go on with"
        )
        raise invalid("continue_final_message", description)
    if request.add_generation_prompt is False and not goes_on:
        raise unimplemented("add_generation_prompt", "leave it out, or end with an assistant's message to go on with")


def _invalid(error: ValidationError, body: bytes) -> ServiceError:
    """The first error, in OpenAI's form."""
    detail = error.errors(include_url=False, include_input=False)[0]
    if detail["type"] == "json_invalid" and (where := surrogate_in(body)) is not None:
        description = "has half of a surrogate pair, which is no character; send both halves, or the character in UTF-8"
        return invalid(where or "body", description)
    path = ""
    for step in detail["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not step.startswith(("<", "[")):  # "[key]" says that a key is at fault, whose name stands before it
            path += f".{step}" if path else step
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return invalid(path or "body", message)


def to_chat(request: CompletionRequest, request_id: str) -> gateway_pb2.ChatRequest:
    """The same request on the wire's terms: message by message and part by part in the same places.

    Takes time for large media: call it on a thread.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED that names the field as the JSON does.
    """
    generation = _generation(request)
    if request.logprobs:
        generation.logprobs = request.top_logprobs or 0
    media = {field: option.value for field, option in options_of(request).items()}
    return gateway_pb2.ChatRequest(
        model=request.model or "",
        messages=[_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)],
        generation=generation,
        media=media_pb2.MediaOptions(**media) if media else None,  # type: ignore[arg-type]  # each of its field's type
        request_id=request_id,
        report_progress=bool(request.stream),
        enable_thinking=_enable_thinking(request),
        tools=tools_of(request),
        tool_choice=tool_choice_of(request),
        cache_salt=request.cache_salt or "",
    )


def asked_tokens(request: Options) -> int | None:
    """Most tokens of the answer, if the request sets it."""
    if isinstance(request, CompletionRequest) and request.max_completion_tokens is not None:
        return request.max_completion_tokens
    return request.max_tokens


def to_prompts(request: TextCompletionRequest, request_id: str) -> list[gateway_pb2.ChatRequest]:
    """One request on the wire's terms for each prompt.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED that names the field as the JSON does.
    """
    if len(request.prompt) > _MOST_PROMPTS:
        raise invalid("prompt", f"has {len(request.prompt)} prompts and may have {_MOST_PROMPTS}")
    if request.best_of not in (None, 1, request.n):
        raise unimplemented("best_of", "leave it out, or use n")
    generation = _generation(request)
    if request.logprobs is not None:
        generation.logprobs = request.logprobs
    if request.max_tokens is None:
        generation.max_tokens = max(_DEFAULT_TEXT_TOKENS, generation.min_tokens)
    return [
        gateway_pb2.ChatRequest(
            model=request.model or "",
            prompt=chat_pb2.Prompt(text=prompt, parse_special=bool(request.parse_special))
            if isinstance(prompt, str)
            else chat_pb2.Prompt(token_ids=chat_pb2.TokenIds(values=prompt)),
            generation=generation,
            request_id=request_id,
            report_progress=bool(request.stream),
            cache_salt=request.cache_salt or "",
        )
        for prompt in request.prompt
    ]


def _generation(request: Options) -> chat_pb2.GenerationOptions:
    """The options that all requests have."""
    generation = chat_pb2.GenerationOptions(
        **{name: getattr(request, name) for name in _SAME_OPTIONS},
        # An empty string would end an answer before it begins: clients send it where no stop string was entered.
        stop=[stop for stop in ([request.stop] if isinstance(request.stop, str) else request.stop or ()) if stop],
    )
    if (asked := form_of(request)) is not None:
        generation.response_format.CopyFrom(asked.form)
    if request.top_p is not None:
        generation.top_p = request.top_p or _LEAST_TOP_P
    if request.top_k is not None:
        generation.top_k = max(request.top_k, 0)  # -1 is vLLM's way to say that there is no limit
    limit = asked_tokens(request)
    if limit is not None:
        generation.max_tokens = limit
        generation.clamp_max_tokens = True  # OpenAI's is an upper bound, and tools send any large number
    if (circles := request.repetition_detection) is not None:
        generation.repetition_detection.max_pattern_size = circles.max_pattern_size
        generation.repetition_detection.min_pattern_size = circles.min_pattern_size
        generation.repetition_detection.min_count = circles.min_count
    return generation


def _enable_thinking(request: CompletionRequest) -> bool | None:
    kwargs = request.chat_template_kwargs
    if kwargs is not None and kwargs.enable_thinking is not None:
        return kwargs.enable_thinking
    return request.enable_thinking


def _message(message: Message, path: str) -> chat_pb2.Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise unimplemented(f"{path}.role", "use system, user, assistant or tool")
    content = message.content
    if message.role == "assistant" and not content:  # it may have said nothing, or why it would not
        content = message.refusal or ("" if content is None else content)
    if content is None:
        raise invalid(f"{path}.content", "is missing")
    reasoning = (message.reasoning_content or message.reasoning) if message.role == "assistant" else None
    parts = (
        [chat_pb2.Part(text=content)]
        if isinstance(content, str)
        else [_part(part, f"{path}.content[{j}]") for j, part in enumerate(content)]
    )
    parts += calls_of(message, path)
    return chat_pb2.Message(role=role, parts=parts, reasoning=reasoning or "", tool_call_id=call_id_of(message, path))


def _part(part: TextPart | RefusalPart | ImagePart | VideoPart, path: str) -> chat_pb2.Part:
    match part:
        case TextPart():
            return chat_pb2.Part(text=part.text)
        case RefusalPart():
            return chat_pb2.Part(text=part.refusal)
        case ImagePart():
            return chat_pb2.Part(image=_media(part.image_url, f"{path}.image_url"))
        case VideoPart():
            return chat_pb2.Part(video=_media(part.video_url, f"{path}.video_url"))


def _media(address: Address, path: str) -> media_pb2.Media:
    if re.match(r"\s*https?:", address.url, re.IGNORECASE):
        raise unimplemented(f"{path}.url", "put the file into a data: URL (data:image/png;base64,…)")
    if not data_url.is_data_url(address.url):
        raise invalid(f"{path}.url", "must be a data: URL with base64 (data:image/png;base64,…)")
    try:
        data = data_url.decode(address.url)
    except ValueError as error:
        raise invalid(f"{path}.url", f"is {error}") from error
    detail = _DETAILS.get(address.detail or "auto")
    return media_pb2.Media(
        data=data,
        options=None if detail is None else media_pb2.MediaOptions(detail=detail),
    )


class JsonNames:
    """Names of fields of the ChatRequest, as the client's JSON has them.

    Args:
        request: The client's JSON.
    """

    def __init__(self, request: CompletionRequest) -> None:
        self._strings = [not isinstance(message.content, list) for message in request.messages]
        template = request.chat_template_kwargs
        by_template = template is not None and template.enable_thinking is not None
        asked = form_of(request)
        self._form = "response_format" if asked is None else asked.name
        self._names = {
            "enable_thinking": "chat_template_kwargs.enable_thinking" if by_template else "enable_thinking",
            "generation.logprobs": "top_logprobs",  # on the wire it is how many, in the JSON whether
            "generation.max_tokens": (
                "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
            ),
            **{f"media.{field}": option.name for field, option in options_of(request).items()},
        }

    def __call__(self, path: str) -> str:
        """The name in the JSON; a path that is in it already stays as it is."""
        if path in self._names:
            return self._names[path]
        top = re.match(r"\w*", path)
        match top[0] if top else "":
            case "generation":
                option = path.removeprefix("generation.")
                return self._form if option.startswith("response_format") else option
            case "media":
                return f"mm_processor_kwargs{path.removeprefix('media')}"
            case "tools" | "tool_choice":
                return tool_names(path)
            case "messages":
                path = self._in_message(path)
            case "prompt":
                path = "prompt"
        return path

    def _in_message(self, path: str) -> str:
        match = re.match(r"(messages\[(\d+)\])\.parts(\[\d+\])?", path)
        if match is None:
            return path
        number, rest = int(match[2]), path[match.end() :]
        if rest.startswith(".tool_call"):
            return f"{match[1]}.tool_calls"
        if number < len(self._strings) and self._strings[number]:
            return f"{match[1]}.content"
        rest = re.sub(r"^\.(image|video)\b", r".\1_url", rest)
        rest = re.sub(r"\.options\b.*", ".detail", rest)  # a medium's own options come from nothing else
        return f"{match[1]}.content{match[3] or ''}{rest}"


class PromptNames:
    """Names of fields of the ChatRequest of a prompt, as the client's JSON has them.

    Args:
        request: The client's JSON.
    """

    def __init__(self, request: TextCompletionRequest) -> None:
        asked = form_of(request)
        self._form = "response_format" if asked is None else asked.name

    def __call__(self, path: str) -> str:
        """The name in the JSON; a path that is in it already stays as it is."""
        top, _, option = path.partition(".")
        if top == "generation":
            return self._form if option.startswith("response_format") else option
        return "prompt" if top in ("prompt", "messages") else path
