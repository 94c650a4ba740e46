"""What differs between Qwen's families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.families import VisionInfo
from vision_service.media import Kind


@dataclass(frozen=True)
class OtherNames:
    """Names of the tensors in files: an older transformers wrote them, or a model without an encoder has no prefix.

    Attributes:
        embedding: what they call the embedding table.
        prefixes: how their names begin, and how the present names of the same tensors begin.
    """

    embedding: str
    prefixes: tuple[tuple[str, str], ...]

    def present(self, name: str) -> str:
        """The present name of a tensor; one that is present already stays."""
        if any(name.startswith(new) for _, new in self.prefixes):
            return name
        return _with_prefix(name, self.prefixes)

    def stored(self, name: str) -> str:
        """What such a file calls a tensor, by its present name."""
        return _with_prefix(name, tuple((new, old) for old, new in self.prefixes))


def _with_prefix(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)


ENCODER_FIELDS = (
    "depth",
    "hidden_size",
    "hidden_act",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
)
"""Fields of every encoder's config that determine its features. Named so that a later transformers, which may write
more fields, does not change a fingerprint."""


@dataclass(frozen=True)
class EncoderVariant:
    """What differs between the families' encoders.

    Attributes:
        levels: how many feature maps the encoder gives beside the merged one, by its config.
        describe: the entries `vision` of bundle.json that the families do not share, by the encoder's config.
        fields: the fields of the encoder's config that determine its features.
        settings: reads a preprocessor file as the vision service does; raises BundleError where it cannot be served.
        video_processor: what `video_preprocessor_config.json` says of published models, for checkpoints that carry
            image settings alone.
    """

    levels: Callable[[Any], int]
    describe: Callable[[Any], Mapping[str, Any]]
    fields: tuple[str, ...]
    settings: Callable[[Kind, Mapping[str, Any], Path, VisionInfo], object]
    video_processor: Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One of Qwen's families.

    Attributes:
        name: in bundles.
        label: in sentences about one model.
        title: in sentences about what can be exported.
        config: transformers' class of its config.
        model: transformers' class of the whole model.
        layer: transformers' class of a layer of the language model.
        norm: transformers' class of the language model's final norm.
        rotary: transformers' class that computes the rotation's frequencies.
        builder: onnxruntime-genai's class that builds the language model's graph.
        mrope_section: how half of a head is divided among time, height and width, where the config does not say; None:
            all of it is time's.
        encoder: what differs between the encoders; None: the model takes text only.
        check: raises ExportError about a config, read from a path, that cannot be served.
        genai_type: what onnxruntime-genai calls the family.
        other_names: other names in files, if there are such.
    """

    name: str
    label: str
    title: str
    config: Any
    model: Any
    layer: Any
    norm: Any
    rotary: Any
    builder: Any
    mrope_section: tuple[int, int, int] | None
    encoder: EncoderVariant | None
    genai_type: str
    check: Callable[[Path, Any], None] = lambda path, config: None  # most have nothing to check
    other_names: OtherNames | None = None

    @property
    def architecture(self) -> str:
        """The name of the model's class, as `config.json` has it."""
        return str(self.model.__name__)
