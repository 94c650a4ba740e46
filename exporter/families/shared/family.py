"""A checkpoint of one of the families, as the exporter takes it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.calibrated import Plan, Tokens
from exporter.choice import roundings_of
from exporter.family import Family
from exporter.precision import Phase, Precision
from exporter.progress import Progress
from exporter.recipe import Recipe

from .calibration import calibrate
from .checkpoint import Checkpoint
from .decoder import write_decoder
from .description import describe, encoder_fields
from .embedding import write_embedding, write_identity_vision
from .served import check_served
from .size import estimate
from .variant import Variant
from .vision import write_vision


@dataclass(frozen=True)
class Dense:
    """A checkpoint; its methods are those of `exporter.family.Checkpoint`."""

    checkpoint: Checkpoint

    @classmethod
    def plan(cls, root: Path, variant: Variant) -> "Dense":
        """Read and check all but the weights of the checkpoint in directory `root`, also whether it can be served.

        Raises:
            ExportError: something is missing, damaged or unsupported.
        """
        checkpoint = Checkpoint.plan(root, variant)
        check_served(checkpoint)
        return cls(checkpoint)

    @classmethod
    def open(cls, root: Path, variant: Variant) -> "Dense":
        """Read and check the checkpoint in directory `root`.

        Raises:
            ExportError: something is missing, damaged or unsupported.
        """
        return cls(Checkpoint.open(root, variant))

    @property
    def root(self) -> Path:
        """Its directory."""
        return self.checkpoint.root

    @property
    def family(self) -> str:
        """The family's name in bundles."""
        return self.checkpoint.variant.name

    @property
    def parameters(self) -> int:
        """How many weights the model has."""
        return self.checkpoint.parameters

    @property
    def config(self) -> dict[str, Any]:
        """Its config, in transformers 5's dialect whatever the file's."""
        config: dict[str, Any] = self.checkpoint.config.to_dict()
        return config

    @property
    def has_encoder(self) -> bool:
        """Whether it takes images and videos."""
        return self.checkpoint.variant.encoder is not None

    @property
    def adapter(self) -> bool | None:
        """Whether requests with media use a low-rank adapter; None: models of the family have none."""
        return self.checkpoint.has_adapter if self.checkpoint.variant.takes_adapter else None

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return int(self.checkpoint.text.num_hidden_layers)

    @property
    def chat_template(self) -> str:
        """The Jinja source."""
        return self.checkpoint.chat_template

    @property
    def generation_config(self) -> dict[str, Any]:
        """What `generation_config.json` says, or what the config implies."""
        return self.checkpoint.generation_config

    def estimate(self, graphs: Sequence[Precision | Phase], *, block_size: int, recipe: Recipe) -> int:
        """Bytes that a bundle will take."""
        return estimate(self.checkpoint, graphs, block_size=block_size, recipe=recipe)

    def write_encoder(self, folder: Path, *, progress: Progress) -> None:
        """Write the encoder's part of a bundle."""
        write_vision(self.checkpoint, folder, progress=progress)

    def calibrate(
        self,
        tokens: Sequence[Tokens],
        graphs: Sequence[Phase],
        *,
        block_size: int,
        accuracy_level: int,
        recipe: Recipe,
        smooth: bool,
        progress: Progress,
    ) -> Plan:
        """Find how each site is rounded."""
        roundings = {
            graph: roundings_of(
                graph, block_size=block_size, accuracy_level=accuracy_level, recipe=recipe, layers=self.layers
            )
            for graph in graphs
        }
        return calibrate(self.checkpoint, tokens, roundings, smooth=smooth, progress=progress)

    def write_decoder(
        self,
        folder: Path,
        *,
        precision: Precision | Phase,
        block_size: int,
        accuracy_level: int,
        recipe: Recipe,
        smooth: bool,
        plan: Plan | None,
        progress: Progress,
    ) -> Path:
        """Write one decoder graph; returns its path."""
        return write_decoder(
            self.checkpoint,
            folder,
            precision=precision,
            block_size=block_size,
            accuracy_level=accuracy_level,
            recipe=recipe,
            smooth=smooth,
            plan=plan,
            progress=progress,
        )

    def write_embedding(self, folder: Path, *, half: bool, progress: Progress) -> None:
        """Write the embedding merge, and for onnxruntime-genai the identity that stands for the encoder."""
        write_embedding(self.checkpoint, folder, half=half, progress=progress)
        if self.checkpoint.variant.genai_type is not None:
            write_identity_vision(self.checkpoint, folder)

    def describe(self) -> Mapping[str, Any]:
        """The family's entries of `bundle.json`."""
        return describe(self.checkpoint)

    def encoder_fields(self) -> Mapping[str, Any]:
        """The fields of the encoder's config that determine its features."""
        return encoder_fields(self.checkpoint)


def family(variant: Variant) -> Family:
    """The family of a variant, for the registry."""
    return Family(
        title=variant.title,
        architecture=variant.architecture,
        plan=functools.partial(Dense.plan, variant=variant),
        open=functools.partial(Dense.open, variant=variant),
    )
