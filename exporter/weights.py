"""A checkpoint's tensors, found by their headers and read one at a time.

Files are read with plain reads and never mapped: a mapped shard counts as resident memory once it has been touched,
and then the peak of an export would be the size of the checkpoint rather than of its largest tensor.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import ExportError
from .progress import Progress

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format itself


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor's bytes lie: `size` bytes from `offset` in `file`, row-major, little-endian."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """Read the tensor, or some of its rows, in its stored dtype."""
        first, last, _ = (rows or slice(None)).indices(self.shape[0])
        row_size = self.size // max(self.shape[0], 1)
        buffer = bytearray((last - first) * row_size)
        with self.file.open("rb") as file:
            file.seek(self.offset + first * row_size)
            if file.readinto(buffer) != len(buffer):
                raise ExportError(
                    f"{self.file} ended early while it was read: export when it is no longer being written."
                )
        return torch.frombuffer(buffer, dtype=_DTYPES[self.dtype]).reshape(last - first, *self.shape[1:])

    def chunks(self, size: int = 8 * 1024 * 1024) -> Iterator[bytes]:
        """Yield the tensor's raw bytes in pieces of at most `size`."""
        left = self.size
        with self.file.open("rb") as file:
            file.seek(self.offset)
            while left:
                piece = file.read(min(size, left))
                if not piece:
                    raise ExportError(
                        f"{self.file} ended early while it was read: export when it is no longer being written."
                    )
                left -= len(piece)
                yield piece


class Tensors(Mapping[str, TensorRef]):
    """All tensors of a checkpoint by name."""

    def __init__(self, refs: Mapping[str, TensorRef]) -> None:
        self._refs = dict(refs)

    @classmethod
    def open(cls, root: Path) -> "Tensors":
        """Index the safetensors files of checkpoint directory `root`.

        Raises:
            ExportError: there are none, one that the index lists is missing, or one is truncated.
        """
        refs: dict[str, TensorRef] = {}
        for file in _shards(root):
            refs.update(_read_header(file))
        return cls(refs)

    def __getitem__(self, name: str) -> TensorRef:
        return self._refs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def require(self, shapes: Mapping[str, tuple[int, ...]], root: Path) -> None:
        """Check that every tensor named in `shapes` is there, of that shape and of a floating dtype.

        Raises:
            ExportError: naming the first tensor that is not as the config says.
        """
        missing = [name for name in shapes if name not in self._refs]
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise ExportError(
                f"The checkpoint {root} lacks {missing[0]}{more}, which its config.json calls for: "
                "download it again, or convert it to Qwen3-VL's published tensor names."
            )
        for name, shape in shapes.items():
            ref = self._refs[name]
            if ref.shape != shape:
                raise ExportError(
                    f"{name} in {ref.file} has shape {list(ref.shape)} and config.json calls for {list(shape)}: "
                    "the config and the weights are not of the same model."
                )
            if ref.dtype not in _DTYPES:
                raise ExportError(
                    f"{name} in {ref.file} is stored as {ref.dtype}: export the unquantized checkpoint "
                    f"({', '.join(_DTYPES)}) instead."
                )

    def total_size(self, names: Iterable[str]) -> int:
        """Bytes of the named tensors as stored."""
        return sum(self._refs[name].size for name in names)


def copy_tensors(tensors: Mapping[str, TensorRef], path: Path, progress: Progress) -> None:
    """Write a safetensors file from raw bytes: no dtype is touched and no tensor held."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest dtypes first keeps every tensor aligned to its own size, as the format's own writer does.
    ordered = sorted(tensors.items(), key=lambda item: (item[1].dtype != "F32", item[0]))
    for name, ref in ordered:
        header[name] = {"dtype": ref.dtype, "shape": list(ref.shape), "data_offsets": [end, end + ref.size]}
        end += ref.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file, progress.bar("vision tensors", total=end, unit="B") as advance:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, ref in ordered:
            for chunk in ref.chunks():
                file.write(chunk)
                advance(len(chunk))


def _shards(root: Path) -> list[Path]:
    index = root / INDEX_FILE
    if not index.is_file():
        if not (root / SINGLE_FILE).is_file():
            raise ExportError(
                f"{root} has no weights ({SINGLE_FILE} or {INDEX_FILE}): only safetensors checkpoints can be exported."
            )
        return [root / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(f"{index} cannot be read ({error}): download the checkpoint again.") from error
    for name in names:
        if not (root / name).is_file():
            raise ExportError(
                f"The checkpoint {root} is incomplete, its index lists {name} and there is no such file: "
                "download it again."
            )
    return [root / name for name in names]


def _read_header(file: Path) -> dict[str, TensorRef]:
    # The format: eight bytes of header length, a JSON header, then the tensors' bytes.
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(_MAX_HEADER, size):
                raise ValueError(f"its header claims {length:,} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        refs = {name: _ref(file, 8 + length, entry) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{file} is not a readable safetensors file ({error}): download it again.") from error
    end = max((ref.offset + ref.size for ref in refs.values()), default=8 + length)
    if size < end:
        raise ExportError(f"{file} is truncated, it has {size:,} of {end:,} bytes: download it again.")
    return refs


def _ref(file: Path, base: int, entry: dict[str, Any]) -> TensorRef:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = str(entry["dtype"])
    if dtype in _DTYPES and end - begin != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError("a tensor's size does not fit its shape")
    return TensorRef(file=file, dtype=dtype, shape=shape, offset=base + begin, size=end - begin)
