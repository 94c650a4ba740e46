"""Converts messages to values of the core. Errors name the path of the field; no invalid field is ignored."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from decoder_service.chat import MediaKind, Medium, Message, RawPrompt, Role, Text, ToolCall, media_of
from decoder_service.engine import MAX_LOGPROBS, SamplingParams
from decoder_service.output.constraint import Form
from decoder_service.output.repetition import MAX_COUNT, MAX_PATTERN_SIZE, RepetitionLimits
from decoder_service.request.admission import Limits
from decoder_service.request.generation import (
    MAX_BIASED_TOKENS,
    MAX_CHOICES,
    MAX_FORM_BYTES,
    MAX_LOGIT_BIAS,
    MAX_PENALTY,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    Generation,
    GenerationDefaults,
)
from decoder_service.request.layout import WIRE_KINDS
from decoder_service.request.opening import Opening
from decoder_service.rpc import from_tools
from serving.calls import check_printable, check_request_id
from serving.errors import Reason, failure, invalid, too_large
from serving.media import check_options, is_digest, not_taken, relevant_options, requested_options
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2

MAX_MESSAGES = 1024
MAX_PARTS = 16384
MAX_TOKEN_IDS = 1 << 20

_SEED_BITS = 63

_ROLES = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}


def opening(
    request: decoder_pb2.GenerateOpen, *, model: str, vocab_size: int, defaults: GenerationDefaults, limits: Limits
) -> Opening:
    """Check the opening of a `Generate` call.

    Args:
        request: The message.
        model: Name of the served model.
        vocab_size: Size of the vocabulary; token ids are below it.
        defaults: Defaults for options that are not set.
        limits: Limits of one request.

    Raises:
        ServiceError: INVALID_ARGUMENT, UNIMPLEMENTED, NOT_FOUND or RESOURCE_EXHAUSTED, with the field's path.
    """
    check_model(request.model, model)
    request_id = check_request_id(request.request_id)
    check_options(request.media, "media")
    return Opening(
        request_id,
        prompt_of(request, limits, vocab_size=vocab_size, media=request.media),
        generation(request.generation, defaults, vocab_size=vocab_size),
        request.encoder_dtype,
        request.report_progress,
        enable_thinking(request),
        from_tools.tools(request.tools, request.tool_choice),
        check_printable(request.cache_scope, path="cache_scope"),
    )


def prompt_of(
    request: decoder_pb2.GenerateOpen | decoder_pb2.CountPromptTokensRequest,
    limits: Limits,
    *,
    vocab_size: int,
    media: media_pb2.MediaOptions | None = None,
) -> tuple[Message, ...] | RawPrompt:
    """Check what the model goes on with: a conversation, or a prompt without messages.

    Raises:
        ServiceError: INVALID_ARGUMENT, UNIMPLEMENTED or RESOURCE_EXHAUSTED, with the field's path.
    """
    if not request.HasField("prompt"):
        return conversation(request.messages, limits, media)
    for name in ("messages", "tools"):
        if getattr(request, name):
            raise invalid(name, "and prompt are both set; send one of them")
    if request.HasField("enable_thinking"):
        raise invalid("enable_thinking", "is the chat template's; with prompt, write the template's text yourself")
    sent = request.prompt
    match sent.WhichOneof("prompt"):
        case "text":
            _check_text_bytes("prompt.text", len(sent.text.encode()), limits)
            return RawPrompt(sent.text, sent.parse_special)
        case "token_ids":
            return RawPrompt(token_ids(sent.token_ids.values, "prompt.token_ids.values", vocab_size))
        case _:
            raise invalid("prompt", "has no content; set text or token_ids")


def token_ids(sent: Sequence[int], path: str, vocab_size: int) -> tuple[int, ...]:
    """Check ids of tokens.

    Raises:
        ServiceError: INVALID_ARGUMENT or RESOURCE_EXHAUSTED, with the field's path.
    """
    if len(sent) > MAX_TOKEN_IDS:
        description = f"has {len(sent)} tokens, over the limit of {MAX_TOKEN_IDS}"
        raise too_large(path, description, reason=Reason.TEXT_TOO_LONG, limit=MAX_TOKEN_IDS)
    for index, token_id in enumerate(sent):
        if token_id >= vocab_size:
            raise invalid(f"{path}[{index}]", f"is {token_id}: the model's ids end at {vocab_size - 1}")
    return tuple(sent)


def enable_thinking(request: decoder_pb2.GenerateOpen | decoder_pb2.CountPromptTokensRequest) -> bool | None:
    """The request's choice whether the model is to think; None if it has none."""
    return request.enable_thinking if request.HasField("enable_thinking") else None


def check_model(name: str, model: str) -> None:
    """Check that the requested model is the served one.

    Raises:
        ServiceError: NOT_FOUND.
    """
    if name not in ("", model):
        raise failure(Reason.MODEL_NOT_FOUND, f"model {name!r} is not served here; this is {model!r}")


def conversation(
    messages: Sequence[chat_pb2.Message], limits: Limits, media: media_pb2.MediaOptions | None = None
) -> tuple[Message, ...]:
    """Check a conversation.

    Args:
        messages: The messages, with media named by digest.
        limits: Limits of one request.
        media: Options of media that have no own options.

    Raises:
        ServiceError: INVALID_ARGUMENT, UNIMPLEMENTED or RESOURCE_EXHAUSTED, with the field's path.
    """
    if not messages:
        raise invalid("messages", "is empty; send at least one message")
    if len(messages) > MAX_MESSAGES:
        raise too_large(
            "messages",
            f"has {len(messages)} messages, over the limit of {MAX_MESSAGES}",
            reason=Reason.TOO_MANY_MESSAGES,
            limit=MAX_MESSAGES,
        )
    parts = sum(len(message.parts) for message in messages)
    if parts > MAX_PARTS:
        raise too_large(
            "messages",
            f"has {parts} parts, over the limit of {MAX_PARTS}",
            reason=Reason.TOO_MANY_PARTS,
            limit=MAX_PARTS,
        )
    _check_kinds(messages, {kind.value for kind in limits.takes})
    media = media_pb2.MediaOptions() if media is None else media
    checked = tuple(_message(message, index, media) for index, message in enumerate(messages))
    count = len(media_of(checked))
    if count > limits.max_prompt_media:
        raise too_large(
            "messages",
            f"has {count} images and videos, over max_prompt_media, which is {limits.max_prompt_media}",
            reason=Reason.TOO_MANY_MEDIA,
            limit=limits.max_prompt_media,
        )
    _check_text_bytes("messages", sum(_text_bytes(message) for message in checked), limits)
    return checked


def _check_kinds(messages: Sequence[chat_pb2.Message], takes: Collection[str]) -> None:
    for i, message in enumerate(messages):
        for j, part in enumerate(message.parts):
            if (which := part.WhichOneof("part")) in ("image", "video") and which not in takes:
                path = f"messages[{i}].parts[{j}].{which}"
                raise invalid(path, not_taken(takes), reason=Reason.MEDIA_NOT_SUPPORTED)


def _check_text_bytes(path: str, size: int, limits: Limits) -> None:
    if size > limits.max_text_bytes:
        raise too_large(
            path,
            f"has {size} bytes of text, over max_text_bytes, which is {limits.max_text_bytes}",
            reason=Reason.TEXT_TOO_LONG,
            limit=limits.max_text_bytes,
        )


def _text_bytes(message: Message) -> int:
    texts = [message.reasoning]
    for part in message.parts:
        if isinstance(part, Text):
            texts.append(part.text)
        elif isinstance(part, ToolCall):
            texts += [part.name, part.arguments]
    return sum(len(text.encode()) for text in texts)


def _message(message: chat_pb2.Message, index: int, media: media_pb2.MediaOptions) -> Message:
    path = f"messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid(
            f"{path}.role",
            f"is {int(message.role)}, which is no role; use ROLE_SYSTEM (1), ROLE_USER (2), "
            "ROLE_ASSISTANT (3) or ROLE_TOOL (4)",
            reason=Reason.ROLE_UNKNOWN,
        )
    if not message.parts:
        raise invalid(f"{path}.parts", "is empty; send at least one part")
    if message.reasoning and role is not Role.ASSISTANT:
        raise invalid(f"{path}.reasoning", f"only ROLE_ASSISTANT has reasoning; this message is the {role.value}'s")
    if bool(message.tool_call_id) != (role is Role.TOOL):
        description = (
            "is empty; name the call that this message answers" if role is Role.TOOL else "is ROLE_TOOL's alone"
        )
        raise invalid(f"{path}.tool_call_id", description)
    parts = tuple(_part(part, role, media, f"{path}.parts[{n}]") for n, part in enumerate(message.parts))
    return Message(role, parts, message.reasoning, message.tool_call_id)


def _part(part: chat_pb2.Part, role: Role, media: media_pb2.MediaOptions, path: str) -> Text | Medium | ToolCall:
    match part.WhichOneof("part"):
        case "text":
            return Text(part.text)
        case "image":
            return _medium(part.image, MediaKind.IMAGE, role, media, f"{path}.image")
        case "video":
            return _medium(part.video, MediaKind.VIDEO, role, media, f"{path}.video")
        case "tool_call":
            return from_tools.call(part.tool_call, role, f"{path}.tool_call")
        case _:
            raise invalid(path, "has no content; set text, image or video")


def _medium(sent: media_pb2.Media, kind: MediaKind, role: Role, request: media_pb2.MediaOptions, path: str) -> Medium:
    if role not in (Role.USER, Role.TOOL):
        raise invalid(path, f"only messages of the user and of tools may have media; this one is the {role.value}'s")
    if sent.WhichOneof("source") != "digest":
        raise invalid(path, "must be named by its digest: the decoder takes features, not files")
    if not is_digest(sent.digest):
        raise invalid(f"{path}.digest", "must be sha256: and 64 lower-case hexadecimal digits")
    check_options(sent.options, f"{path}.options")
    options = relevant_options(WIRE_KINDS[kind], requested_options(request, sent.options))
    return Medium(kind, sent.digest, options.SerializeToString(deterministic=True))


def generation(options: chat_pb2.GenerationOptions, defaults: GenerationDefaults, *, vocab_size: int) -> Generation:
    """Check generation options.

    Args:
        options: The message.
        defaults: Defaults for options that are not set.
        vocab_size: Size of the vocabulary; token ids are below it.

    Raises:
        ServiceError: INVALID_ARGUMENT or UNIMPLEMENTED, with the field's path.
    """
    recommended = defaults.recommended
    sample = options.recommended_sampling if options.HasField("recommended_sampling") else defaults.sample
    if options.HasField("max_tokens") and options.max_tokens < 1:
        raise invalid("generation.max_tokens", "is 0 and must be at least 1")
    temperature, top_p, top_k = recommended.temperature if sample else 0.0, recommended.top_p, recommended.top_k
    if options.HasField("temperature"):
        temperature = options.temperature
        _check(0 <= temperature <= MAX_TEMPERATURE, "temperature", temperature, f"from 0 to {MAX_TEMPERATURE:g}")
    if options.HasField("top_p"):
        top_p = options.top_p
        _check(0 < top_p <= 1, "top_p", top_p, "greater than 0 and at most 1")
    if options.HasField("top_k"):
        top_k = options.top_k
    min_p, repetition_penalty = recommended.min_p, recommended.repetition_penalty
    if options.HasField("min_p"):
        min_p = options.min_p
        _check(0 <= min_p <= 1, "min_p", min_p, "from 0 to 1")
    if options.HasField("repetition_penalty"):
        repetition_penalty = options.repetition_penalty
        _check(0 < repetition_penalty < math.inf, "repetition_penalty", repetition_penalty, "greater than 0")
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(options, name)
        _check(-MAX_PENALTY <= penalty <= MAX_PENALTY, name, penalty, f"from {-MAX_PENALTY:g} to {MAX_PENALTY:g}")
    _check(options.logprobs <= MAX_LOGPROBS, "logprobs", options.logprobs, f"from 0 to {MAX_LOGPROBS}")
    _check(options.n <= MAX_CHOICES, "n", options.n, f"from 1 to {MAX_CHOICES}")
    if options.HasField("max_tokens"):
        most = options.max_tokens
        _check(options.min_tokens <= most, "min_tokens", options.min_tokens, f"at most max_tokens, which is {most}")
    seed = options.seed if options.HasField("seed") else secrets.randbits(_SEED_BITS)
    return Generation(
        sampling=SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            logit_bias=_logit_bias(options.logit_bias, vocab_size),
            logprobs=options.logprobs if options.HasField("logprobs") else None,
            min_tokens=options.min_tokens,
        ),
        max_tokens=options.max_tokens if options.HasField("max_tokens") else None,
        stop=_stops(options.stop),
        return_prompt_token_ids=options.return_prompt_token_ids,
        form=_form(options.response_format) if options.HasField("response_format") else None,
        repetition=_repetition(options, defaults.repetition),
        stop_token_ids=_stop_tokens(options.stop_token_ids, vocab_size),
        ignore_eos=options.ignore_eos,
        choices=options.n or 1,
        clamp_max_tokens=options.clamp_max_tokens,
    )


def _repetition(options: chat_pb2.GenerationOptions, default: RepetitionLimits | None) -> RepetitionLimits | None:
    if not options.HasField("repetition_detection"):
        return default
    sent = options.repetition_detection
    most, least, count = sent.max_pattern_size, sent.min_pattern_size or 1, sent.min_count
    if not most:
        return None
    _check(most <= MAX_PATTERN_SIZE, "repetition_detection.max_pattern_size", most, f"at most {MAX_PATTERN_SIZE}")
    _check(least <= most, "repetition_detection.min_pattern_size", least, f"at most max_pattern_size, which is {most}")
    _check(2 <= count <= MAX_COUNT, "repetition_detection.min_count", count, f"from 2 to {MAX_COUNT}")
    return RepetitionLimits(least, most, count)


def _form(sent: chat_pb2.ResponseFormat) -> Form:
    path = "generation.response_format"
    match sent.WhichOneof("format"):
        case "json_object":
            if not sent.json_object:
                raise invalid(f"{path}.json_object", "is false; leave response_format unset for text of any form")
            return Form("json_schema", '{"type": "object"}')
        case "choice":
            if not sent.choice.values or not all(sent.choice.values):
                raise invalid(f"{path}.choice.values", "has no string or an empty one; send those to choose from")
            form = Form("choice", json.dumps(list(sent.choice.values)))
        case "json_schema" | "regex" | "grammar" as kind:
            form = Form(kind, getattr(sent, kind))
        case _:
            raise invalid(path, "has no format; set json_schema, json_object, regex, grammar or choice")
    if (size := len(form.text.encode())) > MAX_FORM_BYTES:
        raise invalid(f"{path}.{form.kind}", f"has {size} bytes and may have {MAX_FORM_BYTES}")
    return form


def _stops(stops: Sequence[str]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise invalid("generation.stop", f"has {len(stops)} strings and may have {MAX_STOPS}")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise invalid(
                f"generation.stop[{index}]", f"has {len(stop)} characters and must have 1 to {MAX_STOP_LENGTH}"
            )
    return tuple(stops)


def _stop_tokens(sent: Sequence[int], vocab_size: int) -> frozenset[int]:
    if len(sent) > MAX_STOP_TOKENS:
        raise invalid("generation.stop_token_ids", f"has {len(sent)} tokens and may have {MAX_STOP_TOKENS}")
    for index, token_id in enumerate(sent):
        _check(token_id < vocab_size, f"stop_token_ids[{index}]", token_id, f"less than {vocab_size}")
    return frozenset(sent)


def _logit_bias(sent: Mapping[int, float], vocab_size: int) -> dict[int, float]:
    if len(sent) > MAX_BIASED_TOKENS:
        raise invalid("generation.logit_bias", f"has {len(sent)} tokens and may have {MAX_BIASED_TOKENS}")
    for token_id, bias in sent.items():
        name = f"logit_bias[{token_id}]"
        if token_id >= vocab_size:
            raise invalid(f"generation.{name}", f"is of no token: the model's ids end at {vocab_size - 1}")
        _check(-MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS, name, bias, f"from {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}")
    return dict(sent)


def _check(holds: bool, name: str, value: float, must_be: str) -> None:
    """Raise an error unless `holds`. Comparisons with NaN are false, so a range check refuses NaN."""
    if not holds:
        # The wire's numbers are float32: written as float64 they would have more digits than the client sent.
        shown = value if isinstance(value, int) else np.float32(value)
        raise invalid(f"generation.{name}", f"is {shown} and must be {must_be}")
