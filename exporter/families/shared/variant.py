"""What differs between the families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.weights import Tensors
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


@dataclass(frozen=True)
class EncoderVariant:
    """What differs between the families' encoders.

    Attributes:
        check: raises ExportError about a config, read from a path, whose parts do not fit together.
        tokens: ids of the tokens of media by their names in bundle.json, by the config; `image` is one.
        describe: the entry `vision` of bundle.json, by the encoder's config.
        fields: the fields of the encoder's config that determine its features.
        activations: the supported values of `hidden_act` of its config, as in the vision service.
        settings: reads a preprocessor file as the vision service does; raises BundleError where it cannot be served.
        video_processor: what `video_preprocessor_config.json` says of published models, for checkpoints that carry
            image settings alone; None: the model takes no videos.
        levels: how many feature maps the encoder gives beside the merged one, by its config.
    """

    check: Callable[[Path, Any], None]
    tokens: Callable[[Any], Mapping[str, int]]
    describe: Callable[[Any], Mapping[str, Any]]
    fields: tuple[str, ...]
    activations: tuple[str, ...]
    settings: Callable[[Kind, Mapping[str, Any], Path, VisionInfo], object]
    video_processor: Mapping[str, Any] | None
    levels: Callable[[Any], int] = lambda vision: 0


@dataclass(frozen=True)
class Variant:
    """A family of dense models.

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
        genai_type: what onnxruntime-genai calls the family; None: the library cannot run it.
        other_names: other names in files, if there are such.
        rotations: the types of rotary embeddings that are supported; "partial" rotates a part of each head.
        has_mrope: whether positions have three axes.
        takes_adapter: whether requests with media use a low-rank adapter, if the checkpoint has one.
        translate: from `config.json` to the config of transformers' class.
        tensors: reads the tensors of a checkpoint directory, by the names that the exporter has for them.
        parts: the exporter's names for a tensor of transformers' class, and which of its rows each has; none where it
            is not needed. By the config and the tensor's name.
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
    genai_type: str | None
    check: Callable[[Path, Any], None] = lambda path, config: None  # most have nothing to check
    other_names: OtherNames | None = None
    rotations: tuple[str, ...] = ("default", "yarn")
    has_mrope: bool = True
    takes_adapter: bool = False
    translate: Callable[[Path, dict[str, Any]], dict[str, Any]] = lambda path, config: config
    tensors: Callable[[Path, Any], Tensors] | None = None
    parts: Callable[[Any, str], Mapping[str, slice]] | None = None

    @property
    def architecture(self) -> str:
        """The name of the model's class, as `config.json` has it."""
        return str(self.model.__name__)
