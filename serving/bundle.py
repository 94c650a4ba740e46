"""The bundle: what the exporter writes and the services read.

A bundle is a directory with `bundle.json` at its root, which names every other file with its size and SHA-256.
This module has the common part of all families; `serving.families` has the part that each family defines.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import from_json

from serving.bundle_error import BundleError as BundleError  # noqa: PLC0414  # re-exported
from serving.bundle_error import BundleProblem
from serving.cores import usable_cores
from serving.families import FamilyInfo, Frozen, ImageTokens, Positive, TextInfo, TextTokens, VisionInfo, WithEncoder
from serving.families import TokenIds as TokenIds  # noqa: PLC0414  # re-exported

FORMAT = "triptych-bundle"
FORMAT_VERSION = 1
MANIFEST = "bundle.json"

_DIGEST_CHUNK = 4 * 1024 * 1024


class ModelInfo(Frozen):
    """The model of the bundle."""

    id: str = Field(min_length=1)
    family: str
    parameters: Positive


class RecipeInfo(Frozen):
    """Which matrices of the INT4 graph have how many bits.

    Attributes:
        name: of the recipe.
        bits: of the matrices of each kind, layer by layer; the output head has one entry.
    """

    name: str
    bits: dict[str, tuple[Literal[4, 8], ...]]


class CalibrationInfo(Frozen):
    """The examples that scales and smoothing were chosen by.

    Attributes:
        data: "built-in", or the name of the directory that they were in.
        sha256: of their texts and pixels.
    """

    data: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DecoderInfo(Frozen):
    """The decoder graphs, all with the same inputs, outputs and KV cache.

    Attributes:
        precision: the bundle's own precision.
        graphs: path inside the bundle of each precision's graph: the own one, and "int8" if it was exported.
        block_size: number of weights that share a scale at 4 bits; at 8 bits it is twice as many if the matrix divides
            into such blocks.
        accuracy_level: attribute of `MatMulNBits` that selects its arithmetic.
        recipe: bits of the matrices of the INT4 graph. None at fp32, and for bundles written before this field existed,
            in which all matrices have 4 bits.
        last_position_logits: whether the graphs return only the logits of the last position.
        smoothed: whether outlier channels were smoothed before quantization. The values of V in the KV cache then
            differ from those of a bundle without smoothing.
        calibration: examples that scales and smoothing were chosen by; None: the weights alone.
        adapter: whether requests with media use a low-rank adapter; None: models of this family have none.
    """

    precision: Literal["int4", "fp32"]
    graphs: dict[str, str]
    block_size: Positive
    accuracy_level: int
    recipe: RecipeInfo | None = None
    last_position_logits: bool
    smoothed: bool = False  # bundles written before this field existed
    calibration: CalibrationInfo | None = None
    adapter: bool | None = None

    @model_validator(mode="after")
    def _has_its_own_graph(self) -> Self:
        if self.precision not in self.graphs:
            raise ValueError(f"decoder.graphs has no entry for its own precision {self.precision!r}")
        return self


class EncoderType(Frozen):
    """The accuracy of a type in which the encoder can compute, as measured by the export.

    Attributes:
        divergence: mean Kullback-Leibler divergence, in nats, between the next-token distributions with features of
            this type and with float32 features.
        positions: number of compared positions.
    """

    divergence: float = Field(ge=0, allow_inf_nan=False)
    positions: Positive


class FileInfo(Frozen):
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Bundle(Frozen):
    """An opened bundle: its description and its directory.

    Make one with `Bundle.open`, which checks that the directory has the described files.
    """

    format: Literal["triptych-bundle"]
    format_version: Literal[1]
    model: ModelInfo
    info: FamilyInfo
    decoder: DecoderInfo
    # By type; None if it was not measured, as in bundles written before this field existed.
    encoder_types: dict[str, EncoderType] | None = None
    files: dict[str, FileInfo]
    created: str
    triptych_version: str
    versions: dict[str, str]

    _root: Path = PrivateAttr(default=Path())

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False, folder: str = "") -> Self:
        """Read and check the bundle in directory `path`.

        Args:
            path: the bundle's directory.
            verify: also compare the SHA-256 of files, which reads them.
            folder: the folder of these files, "vision" or "decoder"; empty: all of the bundle.

        Raises:
            BundleError: it is not a bundle, of another version, or a file is missing, short or changed.
        """
        root = Path(path)
        bundle = cls._parse(root, _read_manifest(root))
        bundle._root = root
        bundle._check_files()
        if verify:
            bundle.verify(folder)
        return bundle

    @classmethod
    def unfinished(cls, root: Path, description: Mapping[str, Any]) -> Self:
        """A bundle in directory `root` that is being made: what is known of it, and no graph.

        Args:
            root: the bundle's directory.
            description: the entries of `bundle.json` about the model.
        """
        decoder = {
            "precision": "fp32",
            "graphs": {"fp32": ""},
            "block_size": 1,
            "accuracy_level": 0,
            "last_position_logits": True,
        }
        missing = {"created": "", "triptych_version": "", "versions": {}, "files": {}, "decoder": decoder}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        bundle = cls.model_validate(_upgrade({**header, **missing, **description}))
        bundle._root = root
        return bundle

    @classmethod
    def _parse(cls, root: Path, raw: bytes) -> Self:
        manifest = root / MANIFEST
        try:
            header = _Header.model_validate_json(raw)
        except ValidationError as error:
            raise BundleError(BundleProblem.FILE_DAMAGED, path=manifest, error=_first(error)) from error
        if header.format != FORMAT:
            raise BundleError(BundleProblem.OF_ANOTHER_PROGRAM, path=manifest, format=header.format)
        if header.format_version != FORMAT_VERSION:
            raise BundleError(
                BundleProblem.FORMAT_VERSION, path=manifest, version=header.format_version, readable=FORMAT_VERSION
            )
        try:
            return cls.model_validate(_upgrade(from_json(raw)))
        except ValidationError as error:
            raise BundleError(BundleProblem.MANIFEST_INVALID, path=manifest, error=_first(error)) from error

    def _check_files(self) -> None:
        for name, expected in self.files.items():
            path = self._path(name)
            if not path.is_file():
                raise BundleError(BundleProblem.FILE_MISSING, root=self.root, name=name)
            if (size := path.stat().st_size) != expected.size:
                raise BundleError(BundleProblem.FILE_SIZE, root=self.root, name=name, size=size, expected=expected.size)
        for precision, graph in self.decoder.graphs.items():
            if graph not in self.files:
                raise BundleError(BundleProblem.GRAPH_NOT_LISTED, root=self.root, precision=precision, graph=graph)

    def verify(self, folder: str = "") -> None:
        """Compare files with their recorded SHA-256, several at a time.

        Args:
            folder: as for `open`.

        Raises:
            BundleError: naming the first file whose content differs, or that cannot be read.
        """
        names = [name for name in self.files if not folder or PurePosixPath(name).parts[0] == folder]
        names.sort(key=lambda name: -self.files[name].size)  # the longest first, so that the threads end together
        with ThreadPoolExecutor(usable_cores()) as pool:
            for name, matches in zip(names, pool.map(self._matches, names), strict=True):
                if not matches:
                    raise BundleError(BundleProblem.DIGEST, root=self.root, name=name)

    def check_memory(self, folder: str, usable: int) -> None:
        """Check that the weights of a service fit in memory: otherwise the kernel may kill it while they are loaded.

        Args:
            folder: the folder that has them, as "vision" or "decoder/int4".
            usable: bytes that the process may use.

        Raises:
            BundleError: they do not.
        """
        needed = sum(info.size for name, info in self.files.items() if name.startswith(f"{folder}/"))
        if needed > usable:
            raise BundleError(
                BundleProblem.NO_MEMORY, folder=self.root / folder, needed=needed / 2**30, usable=usable / 2**30
            )

    def _matches(self, name: str) -> bool:
        path = self._path(name)
        try:
            return sha256_file(path) == self.files[name].sha256
        except OSError as error:
            raise BundleError(BundleProblem.UNREADABLE, path=path, error=error.strerror) from error

    def _path(self, name: str) -> Path:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError(BundleProblem.PATH_OUTSIDE, path=self.root / MANIFEST, name=name)
        return self.root / relative

    @property
    def root(self) -> Path:
        """The bundle's directory."""
        return self._root

    @property
    def vision_dir(self) -> Path:
        """Directory of the encoder's config, weights and preprocessor settings."""
        return self.root / "vision"

    @property
    def decoder_dir(self) -> Path:
        """Directory that `onnxruntime_genai.Model` loads; the tokenizer and the chat template are in it too."""
        return self.root / "decoder"

    @property
    def text(self) -> TextInfo:
        """Dimensions of the language model."""
        return self.info.text

    @property
    def has_encoder(self) -> bool:
        """Whether the model has a vision encoder; otherwise it takes text only."""
        return isinstance(self.info, WithEncoder)

    @property
    def vision(self) -> VisionInfo:
        """Dimensions of the vision encoder. Raises BundleError if there is none."""
        return self._with_encoder.vision

    @property
    def tokens(self) -> TextTokens:
        """Ids of the control tokens of the language model."""
        return self.info.tokens

    @property
    def media_tokens(self) -> ImageTokens:
        """Ids of the control tokens, with those of media. Raises BundleError if there is no encoder."""
        return self._with_encoder.tokens

    @property
    def encoder_fingerprint(self) -> str:
        """Fingerprint of everything that the encoder's features depend on, as hex; empty without an encoder."""
        return self._with_encoder.encoder_fingerprint if self.has_encoder else ""

    @property
    def feature_width(self) -> int:
        """Width of one visual token's features, in columns; without an encoder that of a token's embedding."""
        return self.info.feature_width

    @property
    def _with_encoder(self) -> WithEncoder:
        if not isinstance(self.info, WithEncoder):
            raise BundleError(BundleProblem.NO_ENCODER, root=self.root, model=self.model.id)
        return self.info

    @property
    def context_length(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""
        return self.text.max_position_embeddings

    def graph_path(self, precision: str) -> Path:
        """Path of the decoder graph of `precision`.

        Raises:
            BundleError: the bundle has no graph of that precision.
        """
        if precision not in self.decoder.graphs:
            held = ", ".join(sorted(self.decoder.graphs))
            raise BundleError(BundleProblem.NO_GRAPH, root=self.root, precision=precision, held=held)
        return self._path(self.decoder.graphs[precision])


class _Header(Frozen):
    """The fields that every version has."""

    format: str
    format_version: int


_OF_THE_FAMILY = ("text", "vision", "tokens", "encoder_fingerprint")
"""Entries of `bundle.json` that the family defines; a family may lack some of them."""


def _upgrade(description: dict[str, Any]) -> dict[str, Any]:
    """Convert a `bundle.json` of any supported version to the fields of `Bundle`.

    In version 1, the only one so far, the entries of the family are at the top level.
    """
    model = description.get("model")
    info = {name: description[name] for name in _OF_THE_FAMILY if name in description}
    if isinstance(model, dict) and "family" in model:
        info["family"] = model["family"]
    return {**description, "info": info}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as hex, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_DIGEST_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(root: Path) -> bytes:
    if not root.is_dir():
        raise BundleError(BundleProblem.MISSING, root=root)
    try:
        return (root / MANIFEST).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(BundleProblem.NO_MANIFEST, root=root, manifest=MANIFEST) from error
    except OSError as error:
        raise BundleError(BundleProblem.UNREADABLE, path=root / MANIFEST, error=error.strerror) from error


def _first(error: ValidationError) -> str:
    """The first entry of a validation error, in one line, with its path in `bundle.json`."""
    detail = error.errors(include_url=False)[0]
    place = detail["loc"]
    if place[:1] == ("info",):  # added by `_upgrade`; the family's name follows, unless that is invalid
        place = place[2:] or ("model", "family")
    where = ".".join(str(part) for part in place)
    return f"{where}: {detail['msg']}" if where else detail["msg"]
