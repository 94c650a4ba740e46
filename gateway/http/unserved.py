"""Fields of the JSON that are not served: which are ignored, and which are refused.

A field that is unknown, or that asks nothing of the answer, is ignored: `ignored_fields` names it, and the client finds
the name in the header `x-triptych-ignored`. A field that would change the answer is in one of the tables, with the
values that ask for nothing; with any other value it is refused by name: an answer without it would be wrong silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from gateway.http.schema import (
    ChatTemplateKwargs,
    CompletionRequest,
    MediaIoKwargs,
    Message,
    MmProcessorKwargs,
    Size,
    StreamOptions,
    TextCompletionRequest,
    TokenizeRequest,
    VideoIoKwargs,
)
from serving.errors import unimplemented

_NONE = (None,)
_OFF = (None, False)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")

_REQUEST: dict[str, tuple[Any, ...]] = {
    # OpenAI's.
    "audio": _NONE,
    "function_call": (None, "none", "auto"),
    "functions": _EMPTY,
    "modalities": (None, ["text"]),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": _NONE,
    # vLLM's and SGLang's.
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "chat_template": _NONE,
    "documents": _EMPTY,
    "echo": _OFF,
    "include_stop_str_in_output": _OFF,
    "length_penalty": (None, 1),
    "logits_processors": _EMPTY,
    "separate_reasoning": (None, True),
    "skip_special_tokens": (None, True),
    "stop_regex": _EMPTY,
    "truncate_prompt_tokens": _NONE,
    "use_beam_search": _OFF,
    # llama.cpp's.
    "dry_multiplier": (None, 0),
    "dynatemp_range": (None, 0),
    "mirostat": (None, 0),
    "n_predict": (None, -1),
    "top_n_sigma": (None, -1),
    "typical_p": (None, 1),
    "xtc_probability": (None, 0),
}

_TEXT: dict[str, tuple[Any, ...]] = {**_REQUEST, "suffix": _EMPTY}

_MESSAGE: dict[str, tuple[Any, ...]] = {
    "audio": _NONE,
    "function_call": _NONE,
}

_PROCESSOR: dict[str, tuple[Any, ...]] = {
    "do_convert_rgb": (None, True),
    "do_normalize": (None, True),
    "do_rescale": (None, True),
    "do_resize": (None, True),
    "do_sample_frames": (None, True),
    "image_mean": _NONE,
    "image_std": _NONE,
    "merge_size": _NONE,
    "num_frames": _NONE,
    "patch_size": _NONE,
    "resample": _NONE,
    "rescale_factor": _NONE,
    "temporal_patch_size": _NONE,
}

_SIZE: dict[str, tuple[Any, ...]] = dict.fromkeys(("height", "max_height", "max_width", "width"), _NONE)

_VIDEO: dict[str, tuple[Any, ...]] = {"frame_recovery": _OFF, "max_duration": _NONE}

_MEDIA_IO: dict[str, tuple[Any, ...]] = {"audio": _EMPTY, "image": _EMPTY}

# Other variables change nothing unless a template has them, and Qwen's have none.
_TEMPLATE: dict[str, tuple[Any, ...]] = {"add_vision_id": _OFF}

_STREAM: dict[str, tuple[Any, ...]] = {"continuous_usage_stats": _OFF}

_REFUSED: dict[type[BaseModel], dict[str, tuple[Any, ...]]] = {
    CompletionRequest: {**_REQUEST, "best_of": (None, 1)},
    TextCompletionRequest: _TEXT,
    TokenizeRequest: _REQUEST,
    Message: _MESSAGE,
    MmProcessorKwargs: _PROCESSOR,
    Size: _SIZE,
    MediaIoKwargs: _MEDIA_IO,
    VideoIoKwargs: _VIDEO,
    StreamOptions: _STREAM,
    ChatTemplateKwargs: _TEMPLATE,
}
"""Fields that would change the answer, by the object that holds them, with the values that ask for nothing."""

_ADVICE = {
    "audio": "leave it out; answers are text",
    "best_of": "leave it out, or use n",
    "echo": "leave it out, and put the prompt before the answer yourself",
    "suffix": "leave it out; the model only goes on with a prompt",
    "function_call": "leave it out",
    "num_frames": "use media_io_kwargs.video.num_frames",
    "reasoning_effort": "leave it out; the effort of this model cannot be set",
}


def ignored_fields(request: BaseModel) -> list[str]:
    """Paths of the fields that are ignored, in the order of the JSON.

    Raises:
        ServiceError: UNIMPLEMENTED that names a field that would change the answer and is not served.
    """
    ignored = []
    for path, owner, name, value in _undeclared(request, ""):
        neutral = _REFUSED.get(owner, {}).get(name)
        if neutral is None:
            if value not in _EMPTY:
                ignored.append(path)
        # True == 1, but it is another value in JSON.
        elif not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in neutral):
            raise unimplemented(path, _ADVICE.get(name, "leave it out"))
    return ignored


def _undeclared(value: object, path: str) -> Iterator[tuple[str, type[BaseModel], str, Any]]:
    """Every field that the schema does not declare: its path, the class of its object, its name and its value."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _undeclared(item, f"{path}[{index}]")
    elif isinstance(value, BaseModel):
        prefix = f"{path}." if path else ""
        for name, extra in (value.model_extra or {}).items():
            yield f"{prefix}{name}", type(value), name, extra
        for name in value.model_fields_set & set(type(value).model_fields):
            yield from _undeclared(getattr(value, name), f"{prefix}{name}")
