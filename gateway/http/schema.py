"""The JSON of `POST /v1/chat/completions`, as OpenAI defines it and as far as it is served.

A field that OpenAI does not know is refused by name, as OpenAI does. A field that OpenAI knows and Triptych does not is
in `NEUTRAL`: it may be sent with a value that asks for nothing, and is refused by name with any other. `user`,
`safety_identifier`, `prompt_cache_key` and `metadata` ask nothing of the answer by OpenAI's own definition: they are
accepted and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictStr, Tag
from pydantic_core import PydanticCustomError

_ANY_BOOL = (None, True, False)

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": _ANY_BOOL,
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""What OpenAI's API (and vLLM's additions to it) know and Triptych does not, with the values that ask for nothing."""

NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_call_id": (None,),
    "tool_calls": (None, []),
}
"""The same for a message: an answer of the model may be sent back as it came."""

NEUTRAL_IN_PROCESSOR: dict[str, tuple[Any, ...]] = {
    "do_convert_rgb": (None, True),
    "do_normalize": (None, True),
    "do_rescale": (None, True),
    "do_resize": (None, True),
    "do_sample_frames": (None, True),
    "image_mean": (None,),
    "image_std": (None,),
    "merge_size": (None,),
    "num_frames": (None,),
    "patch_size": (None,),
    "resample": (None,),
    "rescale_factor": (None,),
    "temporal_patch_size": (None,),
}
"""The same for `mm_processor_kwargs`, whose names are those of transformers' processors."""

NEUTRAL_IN_SIZE: dict[str, tuple[Any, ...]] = {
    "height": (None,),
    "max_height": (None,),
    "max_width": (None,),
    "width": (None,),
}
"""The same for `mm_processor_kwargs.size`."""

NEUTRAL_IN_MEDIA_IO: dict[str, tuple[Any, ...]] = {"audio": (None, {}), "image": (None, {})}
"""The same for `media_io_kwargs`."""

NEUTRAL_IN_VIDEO_IO: dict[str, tuple[Any, ...]] = {
    "frame_recovery": (None, False),
    "max_duration": (None,),
    "video_backend": (None,),
}
"""The same for `media_io_kwargs.video`."""


class _Json(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Address(_Json):
    """Where an image or a video is: a `data:` URL with its bytes in base64."""

    url: StrictStr
    detail: Literal["auto", "high", "low", "original"] | None = None


class TextPart(_Json):
    """Text."""

    type: Literal["text"]
    text: StrictStr


class ImagePart(_Json):
    """A picture."""

    type: Literal["image_url"]
    image_url: Address


class VideoPart(_Json):
    """A video; not in OpenAI's API, but in vLLM's and others'."""

    type: Literal["video_url"]
    video_url: Address


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


# The tags are in the place of an error, where they are no part of the client's JSON: angle brackets set them apart.
Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[ImagePart, Tag("<image_url>")]
    | Annotated[VideoPart, Tag("<video_url>")],
    Discriminator(
        lambda value: f"<{_field(value, 'type')}>",
        custom_error_type="part_type",
        custom_error_message="`type` must be text, image_url or video_url",
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


class Message(_Json):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None

    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    name: Any = None
    refusal: Any = None
    tool_call_id: Any = None
    tool_calls: Any = None


class StreamOptions(_Json):
    """What a stream holds beside the answer."""

    include_usage: StrictBool = False
    include_obfuscation: Literal[False] | None = None


_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 32)]
_Rate = Annotated[float, Field(strict=True, ge=0)]


def _rate_or_unset(rate: float) -> float | None:
    if rate != -1 and not rate >= 0:
        raise PydanticCustomError("rate", "must be -1 or at least 0")
    return None if rate == -1 else rate


class Size(_Json):
    """Least and greatest area in pixels, whatever the names say: so transformers' processors of Qwen take them."""

    shortest_edge: _Count | None = None
    longest_edge: _Count | None = None

    height: Any = None
    max_height: Any = None
    max_width: Any = None
    width: Any = None


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

    do_convert_rgb: Any = None
    do_normalize: Any = None
    do_rescale: Any = None
    do_resize: Any = None
    do_sample_frames: Any = None
    image_mean: Any = None
    image_std: Any = None
    merge_size: Any = None
    num_frames: Any = None
    patch_size: Any = None
    resample: Any = None
    rescale_factor: Any = None
    temporal_patch_size: Any = None


class VideoIoKwargs(_Json):
    """How a video is sampled. -1, vLLM's way to say that there is no bound, is None here."""

    fps: Annotated[float, Field(strict=True), AfterValidator(_rate_or_unset)] | None = None
    num_frames: (
        Annotated[
            int, Field(strict=True, ge=-1, lt=1 << 32), AfterValidator(lambda count: None if count == -1 else count)
        ]
        | None
    ) = None

    frame_recovery: Any = None
    max_duration: Any = None
    video_backend: Any = None


class MediaIoKwargs(_Json):
    """How files are read: vLLM's addition."""

    video: VideoIoKwargs | None = None

    audio: Any = None
    image: Any = None


class CompletionRequest(_Json):
    """The body of a request. Ranges are the conductor's and the decoder's to check."""

    model: StrictStr = ""
    messages: list[Message]
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] | None = None
    max_completion_tokens: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1, lt=1 << 32)] | None = None
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 64)] | None = None
    stop: Strings | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[Annotated[int, Field(ge=0, lt=1 << 32)], float] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] | None = None
    # vLLM's additions, beside top_k.
    min_p: float | None = None
    repetition_penalty: float | None = None
    mm_processor_kwargs: MmProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None

    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    metadata: Any = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    n: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    verbosity: Any = None
    web_search_options: Any = None
