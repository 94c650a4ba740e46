"""A checkpoint's tensors, found by their headers and read one at a time.

Files are read with plain reads and never mapped: a mapped shard counts as resident memory once it has been touched,
and then the peak of an export would be the size of the checkpoint rather than of its largest tensor.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .errors import ExportError, ExportProblem
from .formats import refuse_other_formats
from .progress import Progress

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FP8 = {"F8_E4M3": torch.float8_e4m3fn}  # read only where there are scales for it
_SCALES = (".weight_scale_inv", ".weight_scale")  # both are multiplied, whatever the first one's name says
_UNMERGED = (".lora_A.", ".lora_B.", ".base_layer.", ".modules_to_save.")  # PEFT's, of an adapter beside its model
_ROWS = 8192  # read together where tensors are compared
_MAX_HEADER = 100 * 1024 * 1024  # the limit of the safetensors format itself


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor's bytes lie: `size` bytes from `offset` in `file`, row-major, little-endian.

    `name` is as stored, whatever the tensor is called elsewhere.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """Read the tensor, or some of its rows, in its dtype.

        Raises:
            ExportError: the file ended, or a number is not finite.
        """
        tensor = self.raw(rows)
        self._check(tensor)
        return tensor

    def raw(self, rows: slice | None = None) -> torch.Tensor:
        """Read as stored, whatever the numbers are."""
        count = self.shape[0] if self.shape else 1
        first, last, _ = (rows or slice(None)).indices(count)
        row_size = self.size // max(count, 1)
        buffer = bytearray((last - first) * row_size)
        with self.file.open("rb") as file:
            file.seek(self.offset + first * row_size)
            if file.readinto(buffer) != len(buffer):
                raise self._ended()
        dtype = (_DTYPES | _FP8)[self.dtype]
        return torch.frombuffer(buffer, dtype=dtype).reshape(last - first, *self.shape[1:])

    def chunks(self, size: int = 8 * 1024 * 1024) -> Iterator[bytes]:
        """Yield the tensor's raw bytes in pieces of at most `size`, a multiple of every dtype's.

        Raises:
            ExportError: the file ended, or a number is not finite.
        """
        left = self.size
        with self.file.open("rb") as file:
            file.seek(self.offset)
            while left:
                piece = file.read(min(size, left))
                if len(piece) != min(size, left):
                    raise self._ended()
                left -= len(piece)
                self._check(torch.frombuffer(bytearray(piece), dtype=_DTYPES[self.dtype]))
                yield piece

    def part(self, first: int, last: int) -> "TensorRef":
        """The rows from `first` to `last`, as a tensor of its own."""
        row = self.size // self.shape[0]
        shape = (last - first, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + first * row, size=(last - first) * row)

    def check_dtype(self) -> None:
        """Check that the tensor is of a floating dtype.

        Raises:
            ExportError: it is not.
        """
        if self.dtype not in _DTYPES:
            raise ExportError(
                ExportProblem.DTYPE_UNSUPPORTED,
                tensor=self.name,
                file=self.file,
                dtype=self.dtype,
                known=", ".join(_DTYPES),
            )

    def _check(self, tensor: torch.Tensor) -> None:
        # The least and the greatest number are NaN where any is; one pass, forty times as fast as `isfinite`.
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ExportError(ExportProblem.NOT_FINITE, tensor=self.name, file=self.file)

    def _ended(self) -> ExportError:
        return ExportError(ExportProblem.FILE_ENDED, file=self.file)


@dataclass(frozen=True)
class ScaledRef(TensorRef):
    """A matrix in FP8 with its scales, read as float32: `dtype`, `shape` and `size` are those of what is read.

    Attributes:
        stored: the FP8 numbers [rows, columns].
        scale: what each block of them is multiplied by, [rows / block, columns / block] rounded up, or one number.
        block: rows and columns of a block; the last ones may be smaller.
    """

    stored: TensorRef
    scale: TensorRef
    block: tuple[int, int]

    @classmethod
    def of(cls, stored: TensorRef, scale: TensorRef, block: tuple[int, int]) -> "ScaledRef":
        """Put a matrix and its scales together.

        Raises:
            ExportError: the scales are not of such blocks.
        """
        one, rows, columns = math.prod(scale.shape) == 1, *stored.shape
        if one:
            block = (rows, columns)
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if scale.dtype not in _DTYPES or not (one or scale.shape == grid):
            raise ExportError(
                ExportProblem.SCALES_UNSUPPORTED,
                tensor=scale.name,
                file=scale.file,
                dtype=scale.dtype,
                shape=list(scale.shape),
                block=list(block),
                grid=list(grid),
            )
        size = 4 * math.prod(stored.shape)
        return cls(stored.name, stored.file, "F32", stored.shape, stored.offset, size, stored, scale, block)

    def raw(self, rows: slice | None = None) -> torch.Tensor:
        """The product of numbers and scales, in float32: exact where the scales are bfloat16."""
        first, last, _ = (rows or slice(None)).indices(self.shape[0])
        product = self.stored.raw(slice(first, last)).to(torch.float32)
        scales = self.scale.raw().to(torch.float32).reshape(-(-self.shape[0] // self.block[0]), -1)
        of_rows = scales[torch.arange(first, last) // self.block[0]]
        for index, start in enumerate(range(0, self.shape[1], self.block[1])):
            product[:, start : start + self.block[1]] *= of_rows[:, index : index + 1]
        return product

    def chunks(self, size: int = 8 * 1024 * 1024) -> Iterator[bytes]:
        """Yield the product's bytes in pieces of some rows."""
        step = max(1, size // (4 * self.shape[1]))
        for start in range(0, self.shape[0], step):
            yield self.read(slice(start, start + step)).numpy().tobytes()


@dataclass(frozen=True)
class MultipliedRef(TensorRef):
    """A tensor that is read as its product with a number, in float32: `dtype` and `size` are the product's.

    Attributes:
        stored: the tensor.
        factor: the number.
    """

    stored: TensorRef
    factor: float

    @classmethod
    def of(cls, stored: TensorRef, factor: float) -> "MultipliedRef":
        """Multiply a tensor."""
        size = 4 * math.prod(stored.shape)
        return cls(stored.name, stored.file, "F32", stored.shape, stored.offset, size, stored, factor)

    def raw(self, rows: slice | None = None) -> torch.Tensor:
        """The product, in float32."""
        return self.stored.raw(rows).float() * self.factor


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

    @classmethod
    def file(cls, path: Path) -> "Tensors":
        """Index one safetensors file.

        Raises:
            ExportError: it is damaged.
        """
        return cls(_read_header(path))

    @classmethod
    def planned(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> "Tensors":
        """What a checkpoint is going to hold whose weights are not here: names, shapes and sizes, nothing to read."""
        name = next((name for name, known in _DTYPES.items() if known is dtype), "BF16")
        sizes = {tensor: math.prod(shape) * _DTYPES[name].itemsize for tensor, shape in shapes.items()}
        return cls({t: TensorRef(t, Path(), name, shape, 0, sizes[t]) for t, shape in shapes.items()})

    def __getitem__(self, name: str) -> TensorRef:
        return self._refs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def without_prefix(self, anchor: str, root: Path, *, merged: bool = True) -> "Tensors":
        """Take away what a trainer put before the names, where that is unambiguous.

        Args:
            anchor: a name that every checkpoint has, beginning with `model.`; the inner model alone, saved without
                that word, is found, too.
            root: the checkpoint's directory, for the message.
            merged: whether an adapter's weights are refused.

        Raises:
            ExportError: there are several such prefixes, or an adapter's weights that were not merged.
        """
        unmerged = next((name for name in self._refs if any(part in name for part in _UNMERGED)), None)
        if merged and unmerged is not None:
            raise ExportError(ExportProblem.ADAPTER_UNMERGED, root=root, tensor=unmerged)
        if anchor in self._refs:
            return self
        model = anchor[: anchor.index(".") + 1]
        for ending, put_back in ((anchor, ""), (anchor.removeprefix(model), model)):
            prefixes = sorted({n.removesuffix(ending) for n in self._refs if f".{n}".endswith(f".{ending}")})
            if len(prefixes) > 1:
                raise ExportError(ExportProblem.SEVERAL_MODELS, root=root, prefixes=" and ".join(map(repr, prefixes)))
            if prefixes:
                return Tensors(
                    {
                        rest if not put_back or rest.startswith("lm_head.") else put_back + rest: ref
                        for name, ref in self._refs.items()
                        if (rest := name.removeprefix(prefixes[0])) != name or not prefixes[0]
                    }
                )
        return self

    def renamed(self, rename: Callable[[str], str]) -> "Tensors":
        """The same tensors by other names."""
        return Tensors({rename(name): ref for name, ref in self._refs.items()})

    def dequantized(self, block: tuple[int, int]) -> "Tensors":
        """The same with FP8 matrices and their scales put together, to be read as float32.

        Raises:
            ExportError: scales are not of such blocks.
        """
        refs = dict(self._refs)
        for name, ref in self._refs.items():
            base = name.removesuffix(".weight")
            scales = [refs.pop(base + ending) for ending in _SCALES if name != base and base + ending in refs]
            if scales and ref.dtype in _FP8 and len(ref.shape) == 2:
                refs[name] = ScaledRef.of(ref, scales[0], block)
        return Tensors(refs)

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""
        one, two = self._refs[name], self._refs[other]
        return one.shape == two.shape and all(
            torch.equal(one.raw(rows).float(), two.raw(rows).float())
            for rows in (slice(start, start + _ROWS) for start in range(0, one.shape[0], _ROWS))
        )

    def require(
        self, shapes: Mapping[str, tuple[int, ...]], root: Path, *, model: str, stored: Callable[[str], str] = str
    ) -> None:
        """Check that every tensor named in `shapes` is there, of that shape and of a floating dtype.

        Args:
            shapes: by present name.
            root: the checkpoint's directory, for the message.
            model: the family, for the message.
            stored: what the files call a tensor, by its present name, for the message.

        Raises:
            ExportError: naming the first tensor that is not as the config says, by its name in the files.
        """
        missing = [name for name in shapes if name not in self._refs]
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise ExportError(
                ExportProblem.TENSOR_MISSING,
                root=root,
                tensor=stored(missing[0]),
                more=more,
                stored=next((ref.name for ref in self._refs.values()), "nothing"),
                model=model,
            )
        for name, shape in shapes.items():
            ref = self._refs[name]
            if ref.shape != shape:
                raise ExportError(
                    ExportProblem.SHAPES_DIFFER,
                    tensor=ref.name,
                    file=ref.file,
                    shape=list(ref.shape),
                    expected=list(shape),
                )
            ref.check_dtype()

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
            refuse_other_formats(root, (path.name for path in root.iterdir()))
            raise ExportError(ExportProblem.NO_WEIGHTS, root=root, single=SINGLE_FILE, index=INDEX_FILE)
        return [root / SINGLE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ExportError(ExportProblem.INDEX_UNREADABLE, path=index, error=error) from error
    for name in names:
        if not (root / name).is_file():
            raise ExportError(ExportProblem.SHARD_MISSING, root=root, name=name)
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
        refs = {name: _ref(name, file, 8 + length, entry) for name, entry in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(ExportProblem.SHARD_UNREADABLE, file=file, error=error) from error
    end = max((ref.offset + ref.size for ref in refs.values()), default=8 + length)
    if size < end:
        raise ExportError(ExportProblem.FILE_TRUNCATED, file=file, size=size, end=end)
    return refs


def _ref(name: str, file: Path, base: int, entry: dict[str, Any]) -> TensorRef:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    dtype = str(entry["dtype"])
    known = (_DTYPES | _FP8).get(dtype)
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise ValueError("a tensor's size does not fit its shape")
    return TensorRef(name=name, file=file, dtype=dtype, shape=shape, offset=base + begin, size=end - begin)
