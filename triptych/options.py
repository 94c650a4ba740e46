"""The options of calls, and the requests made from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from triptych.media import MediaOptions, options_to_wire
from triptych.messages import to_messages, to_wire
from triptych.prompts import Prompt, prompt_to_wire
from triptych.tools import Tool, ToolLike, choice_to_wire, tools_to_wire
from vlm.v1 import chat_pb2, gateway_pb2

if TYPE_CHECKING:
    from triptych.messages import Conversation


class CallOptions(TypedDict, total=False):
    """Options of all calls about a conversation.

    Attributes:
        model: Name of the model.
        request_id: Id for the logs.
        timeout: Deadline of the call, in seconds.
        enable_thinking: Whether the model is to think before it answers, if its chat template supports the choice.
        tools: What the model may call: `Tool`, functions with annotations, pydantic models, or OpenAI's dictionaries.
    """

    model: str
    request_id: str
    timeout: float
    enable_thinking: bool
    tools: Sequence[ToolLike]


class CountOptions(MediaOptions, CallOptions, total=False):
    """Options of a count: `MediaOptions` and `CallOptions`."""


class ChatOptions(MediaOptions, CallOptions, total=False):
    """Options of a chat: these, `MediaOptions` and `CallOptions`.

    Options that are not set take the server's default.

    Attributes:
        n: How many answers, for `chat` and `answers`; at most 8. The prompt is computed once, and answer i is sampled
            with `seed` + i.
        max_tokens: Most tokens to generate; if not set, as many as the context and the server allow.
        clamp_max_tokens: Reduce `max_tokens` to the free tokens of the context instead of refusing it.
        temperature: 0 takes the likeliest token each time; up to 2.
        top_p: Keeps the likeliest tokens that reach this probability together.
        top_k: Keeps the k likeliest tokens.
        min_p: Keeps tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Over 1 makes tokens of the prompt and of the answer less likely.
        presence_penalty: Subtracted from the logits of tokens that the answer contains; -2 to 2.
        frequency_penalty: Subtracted from a token's logit once for each occurrence in the answer; -2 to 2.
        logit_bias: Added to these tokens' logits; token id to -100 to 100.
        logprobs: Return the log probability of each token and of this many likeliest ones; 0 to 20.
        seed: Makes sampling repeatable.
        stop: Strings that end the answer.
        stop_token_ids: Tokens that end the answer.
        min_tokens: Tokens before which neither the end of the turn nor one of `stop_token_ids` is sampled.
        ignore_eos: Go on after the end of the turn.
        return_prompt_token_ids: Return the prompt's token ids.
        report_progress: Send `Accepted` and `Progress` events.
        recommended_sampling: Sample as the checkpoint's generation_config recommends, instead of greedily. Options that
            are set take precedence.
        repetition_detection: End an answer that repeats itself: `max_pattern_size` and `min_pattern_size` in tokens,
            and `min_count`, how often the pattern must occur in a row.
        tool_choice: `auto`, `none`, `required`, or the tool that must be called, or its name.
        parallel_tool_calls: Whether an answer may have several calls; by default it may.
        response_format: The answer is JSON that this schema admits: a dictionary, or a type such as a pydantic model.
            OpenAI's `{"type": "json_object"}` and `{"type": "json_schema", …}` are understood, too.
        regex: The answer is text that this regular expression (Rust's syntax) matches whole.
        choice: The answer is one of these strings.
        grammar: The answer is text that this grammar (Lark or GBNF) derives. Of the last four at most one is set.
        cache_salt: What is kept of earlier requests is used only for those with the same salt.
    """

    n: int
    max_tokens: int
    clamp_max_tokens: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    logprobs: int
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    min_tokens: int
    ignore_eos: bool
    return_prompt_token_ids: bool
    report_progress: bool
    recommended_sampling: bool
    repetition_detection: Mapping[str, int]
    tool_choice: str | Tool | Callable[..., Any]
    parallel_tool_calls: bool
    response_format: Mapping[str, Any] | type
    regex: str
    choice: Sequence[str]
    grammar: str
    cache_salt: str


_MOST_SECONDS = 1_000_000_000
"""Of a timeout: more than gRPC and the clock can hold."""

_GENERATION = tuple(
    name
    for name in chat_pb2.GenerationOptions.DESCRIPTOR.fields_by_name
    if name in ChatOptions.__annotations__ and name != "response_format"
)
"""Options that are fields of GenerationOptions with the same names."""


def _check_names(options: Mapping[str, object], known: type[TypedDict]) -> None:  # type: ignore[valid-type]
    """Raise TypeError for an unknown option, as Python does for any other keyword."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"there is no option {name!r}; there are {', '.join(sorted(known.__annotations__))}")


def _check_call(given: Mapping[str, Any]) -> None:
    """Check what is not a number of the protocol.

    Raises:
        TypeError: A value has another type than the option; the message names the option.
        ValueError: The timeout is no length of time.
    """
    for name in ("model", "request_id"):
        if not isinstance(given.get(name, ""), str):
            raise TypeError(f"{name} is {given[name]!r}: it must be a string")
    seconds = given.get("timeout", 0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"timeout is {seconds!r}: it must be a number of seconds")
    if not 0 <= seconds <= _MOST_SECONDS:  # also refuses NaN
        raise ValueError(
            f"timeout is {seconds!r}: it must be from 0 to {_MOST_SECONDS} seconds; leave it out for no limit"
        )


def _generation(given: Mapping[str, Any]) -> chat_pb2.GenerationOptions:
    """The generation options as a message.

    Raises:
        TypeError: A value has another type than the option; the message names the option. ValueError likewise.
    """
    generation = chat_pb2.GenerationOptions()
    for name in _GENERATION:
        if name not in given:
            continue
        value = given[name]
        if name == "stop" and isinstance(value, str):
            raise TypeError(f"stop is {value!r}: it must be a list of strings")
        try:
            generation.MergeFrom(chat_pb2.GenerationOptions(**{name: value}))
        except (TypeError, ValueError) as error:  # a UnicodeEncodeError is a ValueError with other arguments
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} is {value!r}: {error}") from None
    return generation


def _form(given: Mapping[str, Any]) -> chat_pb2.ResponseFormat | None:
    """The form of the answer as a message; None if no option sets one."""
    names = [name for name in ("response_format", "regex", "choice", "grammar") if name in given]
    if not names:
        return None
    if len(names) > 1:
        raise TypeError(f"{' and '.join(names)} are set: an answer has one form")
    (name,) = names
    value = given[name]
    if name == "response_format":
        return _json_form(value)
    if name == "choice":
        if isinstance(value, str):
            raise TypeError(f"choice is {value!r}: it must be a list of strings")
        return chat_pb2.ResponseFormat(choice=chat_pb2.Choice(values=value))
    return chat_pb2.ResponseFormat(**{name: value})


def _json_form(value: Any) -> chat_pb2.ResponseFormat | None:
    if not isinstance(value, Mapping):
        from triptych import schemas  # noqa: PLC0415  # imports pydantic

        value = schemas.schema_of(value)
    match value.get("type"):  # none of these is a type of JSON schema
        case "text":
            return None
        case "json_object":
            return chat_pb2.ResponseFormat(json_object=True)
        case "json_schema":
            try:
                value = value["json_schema"]["schema"]
            except (KeyError, TypeError):
                raise TypeError('response_format has no ["json_schema"]["schema"]') from None
    return chat_pb2.ResponseFormat(json_schema=json.dumps(value, ensure_ascii=False))


def chat_request(conversation: Conversation, options: ChatOptions) -> gateway_pb2.ChatRequest:
    """The request of a chat.

    Raises:
        TypeError: An option is unknown, or a value has another type than its option; likewise the conversation.
        ValueError: A value that no message can hold, or an unknown role.
        OSError: A file of a message cannot be read.
    """
    _check_names(options, ChatOptions)
    given = {name: value for name, value in options.items() if value is not None}
    _check_call(given)
    generation = _generation(given)
    if (form := _form(given)) is not None:
        generation.response_format.CopyFrom(form)
    return gateway_pb2.ChatRequest(
        generation=generation,
        report_progress=options.get("report_progress", False),
        cache_salt=options.get("cache_salt") or "",
        tool_choice=choice_to_wire(options.get("tool_choice"), options.get("parallel_tool_calls")),
        **_common(conversation, given),
    )


def count_request(conversation: Conversation, options: CountOptions) -> gateway_pb2.CountTokensRequest:
    """The request of a count. Errors as for `chat_request`."""
    _check_names(options, CountOptions)
    given = {name: value for name, value in options.items() if value is not None}
    _check_call(given)
    return gateway_pb2.CountTokensRequest(**_common(conversation, given))


def _common(conversation: Conversation, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both requests have."""
    what: dict[str, Any]
    if isinstance(conversation, Prompt):
        what = {"prompt": prompt_to_wire(conversation)}
    else:
        what = {"messages": to_wire(to_messages(conversation))}
    return {
        **what,
        "model": given.get("model", ""),
        "media": options_to_wire(given),
        "tools": tools_to_wire(given.get("tools", ())),
        "request_id": given.get("request_id", ""),
        "enable_thinking": given.get("enable_thinking"),
    }
