"""The JSON of requests, as OpenAI and vLLM define it and as far as it is served.

A field that is not declared here is kept aside: `gateway.http.unserved` decides whether it is ignored or refused. So a
client of OpenAI, vLLM, SGLang or llama.cpp can send what it always sends, and nothing that would change the answer is
dropped silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictStr,
    Tag,
)
from pydantic_core import PydanticCustomError


class _Json(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


def _whole(value: object) -> object:
    """JSON has one kind of number: 16.0 is 16."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The bounds come first: behind the validator they would not be in the JSON Schema of /openapi.json.
_WHOLE = BeforeValidator(_whole)
_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 32), _WHOLE]
_Positive = Annotated[int, Field(strict=True, ge=1, lt=1 << 32), _WHOLE]
_Rate = Annotated[float, Field(strict=True, ge=0)]


def _none_if_negative(value: int) -> int | None:
    return None if value < 0 else value


_Limit = Annotated[int, Field(strict=True, ge=-1, lt=1 << 32), _WHOLE, AfterValidator(_none_if_negative)]
"""Where -1 means that there is no limit, as vLLM and llama.cpp have it: None here."""


def _not_zero(value: object) -> object:
    if isinstance(value, int | float) and value == 0:
        raise PydanticCustomError("tokens", "must be at least 1, or left out")
    return value


_Tokens = Annotated[_Limit, BeforeValidator(_not_zero)]


class Address(_Json):
    """Where an image or a video is: a `data:` URL with its bytes in base64."""

    url: StrictStr
    detail: Literal["auto", "high", "low", "original"] | None = None


def _address(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


# OpenAI's API wants an object here; clients written for Ollama send the URL itself.
_Address = Annotated[Address, BeforeValidator(_address)]


class TextPart(_Json):
    """Text."""

    type: Literal["text"]
    text: StrictStr


class ImagePart(_Json):
    """A picture."""

    type: Literal["image_url"]
    image_url: _Address


class VideoPart(_Json):
    """A video; not in OpenAI's API, but in vLLM's and others'."""

    type: Literal["video_url"]
    video_url: _Address


class RefusalPart(_Json):
    """What an assistant said instead of an answer, sent back."""

    type: Literal["refusal"]
    refusal: StrictStr


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


# The tags are in the place of an error, where they are no part of the client's JSON: angle brackets set them apart.
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    Discriminator(
        lambda value: f"<{_field(value, 'type')}>",
        custom_error_type="part_type",
        custom_error_message="`type` must be text, image_url or video_url (there is no audio: no input_audio and no "
        "audio_url); send a picture as "
        '{"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}',
    ),
]
Content = Annotated[
    Annotated[StrictStr, Tag("<string>")] | Annotated[list[Part], Tag("<parts>")],
    Discriminator(
        lambda value: {str: "<string>", list: "<parts>"}.get(type(value)),
        custom_error_type="content_type",
        custom_error_message="must be a string or a list of parts",
    ),
]

Strings = Annotated[
    Annotated[StrictStr, Tag("<string>")] | Annotated[list[StrictStr], Tag("<strings>")],
    Discriminator(
        lambda value: {str: "<string>", list: "<strings>"}.get(type(value)),
        custom_error_type="strings_type",
        custom_error_message="must be a string or a list of strings",
    ),
]


class CalledFunction(_Json):
    """The function of a call in an earlier turn."""

    name: StrictStr
    arguments: StrictStr | dict[str, Any] | None = None  # OpenAI's are text; Ollama's clients send the object


class CalledTool(_Json):
    """A call in an earlier turn."""

    id: StrictStr = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class Function(_Json):
    """A function that the model may call."""

    name: StrictStr
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class FunctionTool(_Json):
    """A tool; functions are the only kind that is served."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Json):
    """The name of a function."""

    name: StrictStr


class NamedTool(_Json):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("<choice>")] | Annotated[NamedTool, Tag("<tool>")],
    Discriminator(
        lambda value: "<choice>" if isinstance(value, str) else "<tool>",
        custom_error_type="tool_choice_type",
        custom_error_message="must be auto, none, required, or a function by name",
    ),
]


class Message(_Json):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    refusal: StrictStr | None = None  # an assistant's, in the place of its content
    # An assistant's: what it thought, by the name that most servers have for it, and by vLLM's.
    reasoning_content: StrictStr | None = None
    reasoning: StrictStr | None = None
    tool_calls: list[CalledTool] | None = None  # an assistant's
    tool_call_id: StrictStr | None = None  # a tool's


class StreamOptions(_Json):
    """What a stream holds beside the answer."""

    include_usage: StrictBool | None = None


def _rate_or_unset(rate: float) -> float | None:
    if rate != -1 and not rate >= 0:
        raise PydanticCustomError("rate", "must be -1 or at least 0")
    return None if rate == -1 else rate


class Size(_Json):
    """Least and greatest area in pixels, whatever the names say: so transformers' processors of Qwen take them."""

    shortest_edge: _Count | None = None
    longest_edge: _Count | None = None


class MmProcessorKwargs(_Json):
    """How media become pixels: vLLM's addition, and the bounds of a video's volume beside it."""

    min_pixels: _Count | None = None
    max_pixels: _Count | None = None
    fps: _Rate | None = None
    min_frames: _Count | None = None
    max_frames: _Count | None = None
    min_video_pixels: _Count | None = None
    max_video_pixels: _Count | None = None
    size: Size | None = None


class VideoIoKwargs(_Json):
    """How a video is sampled. -1, vLLM's way to say that there is no bound, is None here."""

    fps: Annotated[float, Field(strict=True), AfterValidator(_rate_or_unset)] | None = None
    num_frames: _Limit | None = None


class MediaIoKwargs(_Json):
    """How files are read: vLLM's addition."""

    video: VideoIoKwargs | None = None


def _seed(seed: int) -> int | None:
    """-1 is unset by convention of vLLM and llama.cpp; other negative ones are read as 64 bits without a sign."""
    return None if seed == -1 else seed & ((1 << 64) - 1)


class ChatTemplateKwargs(_Json):
    """What the chat template is told: vLLM's addition."""

    enable_thinking: StrictBool | None = None


class RepetitionDetection(_Json):
    """When an answer is taken to run in circles: vLLM's addition."""

    max_pattern_size: _Count = 0
    min_pattern_size: _Count = 0
    min_count: _Count = 0


class Options(_Json):
    """How answers are drawn: what every endpoint that generates takes. Ranges are the decoder's to check."""

    model: StrictStr | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: _Positive | None = None
    max_tokens: _Tokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1, lt=1 << 32), _WHOLE] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63), _WHOLE, AfterValidator(_seed)] | None = None
    stop: Strings | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, lt=1 << 32)], float] | None = None
    # vLLM's additions, beside top_k.
    stop_token_ids: list[_Count] | None = None
    min_tokens: _Count | None = None
    ignore_eos: StrictBool | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repetition_detection: RepetitionDetection | None = None
    cache_salt: StrictStr | None = None
    # Structured output: OpenAI's field; vLLM's, old and new; SGLang's and llama.cpp's. See gateway.http.formats.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: list[StrictStr] | None = None
    guided_grammar: StrictStr | None = None
    regex: StrictStr | None = None
    ebnf: StrictStr | None = None
    grammar: StrictStr | None = None
    json_schema: dict[str, Any] | None = None
    # Triptych's own.
    recommended_sampling: StrictBool | None = None


class CompletionRequest(Options):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: _Tokens | None = None
    logprobs: StrictBool | None = None
    top_logprobs: _Count | None = None
    mm_processor_kwargs: MmProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    include_reasoning: StrictBool | None = None
    # Alibaba's name for `chat_template_kwargs.enable_thinking`.
    enable_thinking: StrictBool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
    # vLLM's and transformers' fields for an answer that continues the last message, which is the assistant's.
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None


class TokenizeRequest(CompletionRequest):
    """The body of `POST /tokenize`, which is vLLM's: messages or a prompt."""

    messages: list[Message] = Field(default_factory=list)
    prompt: StrictStr | None = None
    return_token_strs: StrictBool | None = None
    # Where it makes a difference a token at the front is asked for, which no served tokenizer has.
    add_special_tokens: StrictBool | None = None
    parse_special: StrictBool | None = None  # llama.cpp's


class DetokenizeRequest(_Json):
    """The body of `POST /detokenize`, which is vLLM's."""

    model: StrictStr | None = None
    tokens: list[_Count]


RawPrompt = str | list[int]


def _prompts(value: object) -> list[RawPrompt]:
    """A string, a list of token ids, or a list of several of these."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if _are_tokens(value):
            return [value]
        if all(isinstance(prompt, str) or (isinstance(prompt, list) and _are_tokens(prompt)) for prompt in value):
            return value
    raise PydanticCustomError("prompt_type", "must be a string, a list of token ids, or a list of these")


def _are_tokens(value: list[object]) -> bool:
    return all(type(token) is int and 0 <= token < 1 << 32 for token in value)


class TextCompletionRequest(Options):
    """The body of `POST /v1/completions`: prompts without a chat template."""

    prompt: Annotated[list[RawPrompt], BeforeValidator(_prompts)]
    logprobs: _Count | None = None
    best_of: _Count | None = None
    add_special_tokens: StrictBool | None = None
    parse_special: StrictBool | None = None
