"""A checkpoint directory, read and checked before any long work starts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from exporter.chat_files import check_tokenizer, read_chat_template
from exporter.errors import ExportError, ExportProblem, one_line
from exporter.formats import take_quantization
from exporter.json_files import read_json
from exporter.progress import quiet
from exporter.weights import Tensors
from vision_service.media import Kind

from .adapter import is_of_adapter
from .variant import EncoderVariant, Variant

VISION_PREFIX = "model.visual."
TEXT_PREFIX = "model.language_model."
EMBEDDING = "model.language_model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu")
"""Of the language model: those that onnxruntime-genai's builder has by transformers' names."""

_PRESENT = re.compile(r"(^|\.)language_model\.(embed_tokens|layers)\.")
"""In the names of a file that has the present ones."""

_SHARED_BY_IMAGE_AND_VIDEO = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")


@dataclass(frozen=True)
class Checkpoint:
    """A dense checkpoint of a family that has everything a bundle needs.

    Attributes:
        root: its directory.
        variant: its family.
        config: its config, in transformers 5's dialect whatever the file's.
        tensors: where each tensor's bytes lie.
        chat_template: the Jinja source.
        processors: the preprocessor settings of each kind of medium; none where the model takes text only.
        generation_config: what `generation_config.json` says, or what the config implies.
        parameters: how many weights the model has (tied ones counted once).
    """

    root: Path
    variant: Variant
    config: Any
    tensors: Tensors
    chat_template: str
    processors: Mapping[Kind, dict[str, Any]]
    generation_config: dict[str, Any]
    parameters: int

    @classmethod
    def plan(cls, root: Path, variant: Variant) -> "Checkpoint":
        """Read and check everything in directory `root` but the weights, whose tensors can be counted and not read.

        Raises:
            ExportError: something is missing, damaged or unsupported.
        """
        config, _ = _read_config(root, variant)
        check_tokenizer(root)
        processors = {} if variant.encoder is None else _read_processors(root, variant.encoder)
        generation_config = _read_generation_config(root, config)
        shapes = _expected_shapes(config, variant)
        return cls(
            root=root,
            variant=variant,
            config=config,
            tensors=Tensors.planned(shapes, _dtype(config)),
            chat_template=read_chat_template(root),
            processors=processors,
            generation_config=generation_config,
            parameters=_count(shapes),
        )

    @classmethod
    def open(cls, root: Path, variant: Variant) -> "Checkpoint":
        """Read and check the checkpoint in directory `root`.

        Raises:
            ExportError: something is missing, damaged or unsupported.
        """
        planned = cls.plan(root, variant)
        config, block = _read_config(root, variant)
        stored: Callable[[str], str] = str
        if variant.tensors is not None:
            tensors = variant.tensors(root, config)
        else:
            tensors, stored = _open_tensors(root, variant)
            tensors = tensors.dequantized(block)
        _settle_head(config, tensors)
        shapes = _expected_shapes(config, variant)
        tensors.require(shapes, root, stored=stored, model=variant.label)
        shapes |= {name: ref.shape for name, ref in tensors.items() if is_of_adapter(name)}
        return replace(planned, config=config, tensors=tensors, parameters=_count(shapes))

    @property
    def text(self) -> Any:
        """The language model's part of the config."""
        return _text(self.config)

    @property
    def vision(self) -> Any:
        """The encoder's part of the config; a model that takes text only has none."""
        return self.config.vision_config

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return _head_dim(self.text)

    @property
    def has_adapter(self) -> bool:
        """Whether requests with media use a low-rank adapter."""
        return any(map(is_of_adapter, self.tensors))

    @property
    def mrope_section(self) -> list[int] | None:
        """How half of head_dim is divided among time, height and width; None: positions have one axis."""
        if not self.variant.has_mrope:
            return None
        if self.variant.mrope_section is None:
            return [self.head_dim // 2, 0, 0]
        return [int(n) for n in _rope(self.config)["mrope_section"]]

    @property
    def deepstack_levels(self) -> int:
        """How many intermediate feature maps the encoder gives beside the merged one."""
        return 0 if self.variant.encoder is None else self.variant.encoder.levels(self.vision)

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features: (1 + levels) · hidden_size."""
        return int((1 + self.deepstack_levels) * self.text.hidden_size)

    @property
    def lm_head(self) -> str:
        """Name of the output head's tensor: the embedding table when the two are tied."""
        return EMBEDDING if self.config.tie_word_embeddings else LM_HEAD


def _open_tensors(root: Path, variant: Variant) -> tuple[Tensors, Callable[[str], str]]:
    """The tensors by their present names, whatever transformers or trainer wrote the file.

    Returns:
        The tensors, and what gives the name that such a file has for a tensor.
    """
    tensors, other = Tensors.open(root), variant.other_names
    if other is None or any(_PRESENT.search(name) for name in tensors):
        return tensors.without_prefix(EMBEDDING, root), str
    return tensors.without_prefix(other.embedding, root).renamed(other.present), other.stored


def _read_config(root: Path, variant: Variant) -> tuple[Any, tuple[int, int]]:
    """The config, and the blocks that share a scale if the weights are FP8."""
    raw = read_json(root / "config.json")
    block = take_quantization(root, raw)
    raw = variant.translate(root / "config.json", raw)
    if variant.encoder is None and "text_config" in raw:
        raise _invalid(root, variant, ValueError("it has a text_config, as only models with an encoder have"))
    # Some files say it in the language model's part alone.
    raw.setdefault("tie_word_embeddings", raw.get("text_config", {}).get("tie_word_embeddings", False))
    try:
        with quiet():
            config = variant.config.from_dict(raw)
    except Exception as error:  # transformers' validation raises many kinds, and each means a bad file
        raise _invalid(root, variant, error) from error
    if "sliding_attention" in (getattr(_text(config), "layer_types", None) or ()):
        raise ExportError(ExportProblem.SLIDING_WINDOW, config=root / "config.json", field="use_sliding_window")
    variant.check(root / "config.json", config)
    _check_activation(root, "hidden_act", _text(config).hidden_act, _ACTIVATIONS)
    config.architectures = [variant.architecture]
    _check_rope(root, config, variant)
    if variant.encoder is not None:
        found = config.vision_config.hidden_act
        _check_activation(root, "vision_config.hidden_act", found, variant.encoder.activations)
        variant.encoder.check(root / "config.json", config)
    return config, block


def _invalid(root: Path, variant: Variant, error: Exception) -> ExportError:
    return ExportError(
        ExportProblem.CONFIG_INVALID, config=root / "config.json", model=variant.label, error=one_line(error)
    )


def _check_activation(root: Path, field: str, found: Any, known: Sequence[str]) -> None:
    if found not in known:
        raise ExportError(
            ExportProblem.ACTIVATION_UNSUPPORTED,
            config=root / "config.json",
            field=field,
            found=found,
            known=known[0] if len(known) == 1 else f"{', '.join(known[:-1])} and {known[-1]}",
        )


def _settle_head(config: Any, tensors: Tensors) -> None:
    """Say in the config whether the output head is the embedding table, by what is stored.

    A head that differs from the table is used whatever the config says, as transformers 5 does. Without one a config
    that ties in either of its parts ties; transformers draws a random head where only the language model's part does.
    """
    if LM_HEAD in tensors:
        tied = config.tie_word_embeddings and EMBEDDING in tensors and tensors.same(LM_HEAD, EMBEDDING)
    else:
        tied = config.tie_word_embeddings or getattr(_text(config), "tie_word_embeddings", False)
    if tied != config.tie_word_embeddings:
        config.tie_word_embeddings = _text(config).tie_word_embeddings = tied


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _check_rope(root: Path, config: Any, variant: Variant) -> None:
    rope, text = _rope(config), _text(config)
    kinds = ["partial"] if rope.get("partial_rotary_factor", 1.0) != 1.0 else []
    kinds.append(kind := rope.get("rope_type", "default"))
    original = rope.get("original_max_position_embeddings") or text.max_position_embeddings
    for asked in kinds:
        if asked not in variant.rotations:
            raise ExportError(
                ExportProblem.ROPE_UNSUPPORTED,
                config=root / "config.json",
                kind=asked,
                known=" and ".join(map(repr, variant.rotations)),
                length=original,
            )
    try:
        variant.rotary(text)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise _invalid(root, variant, error) from error
    if kind == "yarn" and rope["factor"] is not None:
        # Some configs keep the original length, and some give a longer one: media take more tokens than positions.
        text.max_position_embeddings = max(text.max_position_embeddings, int(rope["factor"] * original))
    if variant.mrope_section is None or not variant.has_mrope:
        return
    section, head_dim = rope.setdefault("mrope_section", list(variant.mrope_section)), _head_dim(text)
    if len(section) != 3 or 2 * sum(section) != head_dim:
        raise ExportError(ExportProblem.MROPE_SECTION, config=root / "config.json", section=section, head_dim=head_dim)


def _head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _expected_shapes(config: Any, variant: Variant) -> dict[str, tuple[int, ...]]:
    with quiet(), torch.device("meta"):
        state = variant.model(config).state_dict()
    if config.tie_word_embeddings:
        del state[LM_HEAD]
    if variant.parts is not None:
        return {
            part: tuple(tensor[rows].shape)
            for name, tensor in state.items()
            for part, rows in variant.parts(config, name).items()
        }
    present = variant.other_names.present if variant.other_names is not None else str
    return {present(name): tuple(tensor.shape) for name, tensor in state.items()}


def _read_processors(root: Path, encoder: EncoderVariant) -> dict[Kind, dict[str, Any]]:
    image = _read_image_processor(root)
    if encoder.video_processor is None:
        return {"image": image}
    return {"image": image, "video": _read_video_processor(root, image, encoder.video_processor)}


def _read_image_processor(root: Path) -> dict[str, Any]:
    if (root / "preprocessor_config.json").is_file():
        return read_json(root / "preprocessor_config.json")
    settings = _combined_processor(root, "image_processor")
    if settings is None:
        raise ExportError(ExportProblem.NO_PREPROCESSOR, root=root)
    return settings


def _read_video_processor(root: Path, image_processor: dict[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    if (root / "video_preprocessor_config.json").is_file():
        return read_json(root / "video_preprocessor_config.json")
    settings = _combined_processor(root, "video_processor")
    if settings is not None:
        return settings
    shared = {key: image_processor[key] for key in _SHARED_BY_IMAGE_AND_VIDEO if key in image_processor}
    return {**published, **shared}


def _combined_processor(root: Path, part: str) -> dict[str, Any] | None:
    """One medium's part of `processor_config.json`, which is how transformers 5 saves a processor."""
    path = root / "processor_config.json"
    settings = read_json(path).get(part) if path.is_file() else None
    return settings if isinstance(settings, dict) else None


def _read_generation_config(root: Path, config: Any) -> dict[str, Any]:
    path = root / "generation_config.json"
    settings = read_json(path) if path.is_file() else {}
    for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
        implied = getattr(_text(config), key, None)
        if settings.get(key) is None and implied is not None:
            settings[key] = implied
    if settings.get("eos_token_id") in (None, []):
        raise ExportError(ExportProblem.NO_END_TOKEN, root=root)
    return settings


def _dtype(config: Any) -> torch.dtype:
    """The type that the weights are probably stored in: published configs name it in one of their parts."""
    named = (part.dtype for part in (config, _text(config), getattr(config, "vision_config", None)) if part)
    return next((dtype for dtype in named if isinstance(dtype, torch.dtype)), torch.float32)


def _rope(config: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", _text(config).rope_parameters)


def _text(config: Any) -> Any:
    """The language model's part of a config; where there is no encoder, all of it."""
    return config.get_text_config()
