"""ONNX external data written as the graph is made, so that no initializer stays in memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# Memory-mapped weights want page-aligned starts (64 KiB is the granularity on Windows); small ones need not waste it.
_LARGE = 1024 * 1024
_LARGE_ALIGNMENT = 64 * 1024
_SMALL_ALIGNMENT = 64
_PIECE = 16 * 1024 * 1024


class Spool:
    """One external data file, `<graph>.data` beside the graph, that grows with each tensor added.

    Args:
        graph: path of the graph file.
        written: called with the bytes of each tensor written.
    """

    def __init__(self, graph: Path, written: Callable[[int], None] | None = None) -> None:
        self._graph = graph
        self._path = graph.with_name(graph.name + ".data")
        self._file = self._path.open("wb")
        self._written = written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write `tensor`, of a dtype of whole bytes, and give back what stands for it in the graph."""
        return self.add_chunks(tensor.name or "", tensor.dtype, tuple(tensor.shape.numpy()), _pieces(tensor.numpy()))

    def add_chunks(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], chunks: Iterable[bytes | memoryview]
    ) -> ir.ExternalTensor:
        """Write a tensor from pieces of its row-major little-endian bytes."""
        is_large = math.prod(shape) * dtype.itemsize >= _LARGE
        alignment = _LARGE_ALIGNMENT if is_large else _SMALL_ALIGNMENT
        self._file.write(b"\0" * (-self._file.tell() % alignment))
        offset = self._file.tell()
        for chunk in chunks:
            self._file.write(chunk)
            if self._written is not None:
                self._written(len(chunk))
        length = self._file.tell() - offset
        return ir.ExternalTensor(
            self._path.name, offset, length, dtype, shape=ir.Shape(shape), name=name, base_dir=self._path.parent
        )

    def save(self, model: ir.Model) -> None:
        """Finish the data file and write `model`, whose initializers came from `add`, beside it."""
        self._file.flush()
        model.graph.sort()
        ir.save(model, self._graph)


def _pieces(array: NDArray[Any]) -> Iterator[bytes]:
    # A transposed weight becomes contiguous a piece at a time, never as a whole.
    array = np.atleast_1d(array)
    rows = max(1, _PIECE * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows].tobytes()
