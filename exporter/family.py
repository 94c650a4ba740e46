"""What the exporter needs of a model family; `exporter.families` has the families."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .calibrated import Plan, Tokens
from .precision import Phase, Precision
from .progress import Progress
from .recipe import Recipe


class Checkpoint(Protocol):
    """A checkpoint that is read and checked, and how the parts of a bundle are made of it."""

    @property
    def root(self) -> Path:
        """Its directory."""

    @property
    def family(self) -> str:
        """The family's name in bundles."""

    @property
    def parameters(self) -> int:
        """How many weights the model has (tied ones counted once)."""

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` says, as the present transformers writes it."""

    @property
    def has_encoder(self) -> bool:
        """Whether it takes images and videos; otherwise text only."""

    @property
    def adapter(self) -> bool | None:
        """Whether requests with media use a low-rank adapter; None: models of the family have none."""

    @property
    def layers(self) -> int:
        """Layers of the decoder."""

    @property
    def chat_template(self) -> str:
        """The Jinja source."""

    @property
    def generation_config(self) -> dict[str, Any]:
        """What `generation_config.json` says, or what the config implies."""

    def estimate(self, graphs: Sequence[Precision | Phase], *, block_size: int, recipe: Recipe) -> int:
        """Bytes that a bundle with these decoder graphs will take, estimated a little too high."""

    def write_encoder(self, folder: Path, *, progress: Progress) -> None:
        """Write the encoder's config.json, model.safetensors and preprocessor settings into `folder`, the bundle's.

        Without an encoder nothing is written.
        """

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
        """Look at what the decoder computes of some examples, and find how each of its matrices is rounded.

        Args:
            tokens: the examples.
            graphs: those of the bundle.
            block_size: as in `write_decoder`.
            accuracy_level: as in `write_decoder`.
            recipe: as in `write_decoder`.
            smooth: whether outlier channels may be evened out.
            progress: shows a bar.
        """

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
        """Write one decoder graph with its data, and onnxruntime-genai's configuration for the bundle's own precision.

        Args:
            folder: the bundle's `decoder`.
            precision: of the graph.
            block_size: input features that share one scale at INT4.
            accuracy_level: how `MatMulNBits` computes.
            recipe: bits of the matrices at INT4.
            smooth: even out outlier channels before rounding.
            plan: what `calibrate` found; None rounds by the weights alone.
            progress: shows a bar.

        Returns:
            The graph's path.

        Raises:
            ExportError: the graph cannot be built.
        """

    def write_embedding(self, folder: Path, *, half: bool, progress: Progress) -> None:
        """Write the graphs that turn token ids and features into the decoder's input.

        Args:
            folder: the bundle's `decoder`.
            half: keep the token table in float16 instead of float32.
            progress: shows a bar.
        """

    def describe(self) -> Mapping[str, Any]:
        """The family's entries of `bundle.json`, as `serving.families` reads them."""

    def encoder_fields(self) -> Mapping[str, Any]:
        """The fields of the encoder's config that determine its features, beside its weights and preprocessors.

        Without an encoder there are none.
        """


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        title: its name in sentences.
        architecture: the name of transformers' class in `config.json`.
        plan: reads and checks all but the weights, which need not be there: what comes of it can estimate and tell, and
            has no tensor to read. Raises ExportError as `open`.
        open: reads and checks the checkpoint in a directory. Raises ExportError where something is missing, damaged or
            unsupported.
        folders: folders of a repository that are needed beside the files at its top.
    """

    title: str
    architecture: str
    plan: Callable[[Path], Checkpoint]
    open: Callable[[Path], Checkpoint]
    folders: tuple[str, ...] = ()
