"""Tensors arrive as they were sent, or are refused before anything is allocated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import Code, ServiceError
from serving.tensors import CHUNK_BYTES, TensorAssembler, chunks
from vlm.v1 import tensor_pb2

F32 = tensor_pb2.DATA_TYPE_FLOAT32


def _spec(rows: int, width: int, dtype: tensor_pb2.DataType.ValueType = F32) -> tensor_pb2.TensorSpec:
    return tensor_pb2.TensorSpec(dtype=dtype, shape=[rows, width])


def _assembler(rows: int = 3, width: int = 4, *, max_bytes: int = 1 << 30) -> TensorAssembler:
    return TensorAssembler(_spec(rows, width), rows=rows, width=width, max_bytes=max_bytes, path="f")


@given(rows=st.integers(0, 300), width=st.integers(1, 2000))
def test_float32_survives(rows: int, width: int) -> None:
    """Any shape comes back bit by bit, in chunks of at most 1 MiB."""
    sent = np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)
    assembler = _assembler(rows, width)
    for chunk in chunks(memoryview(sent.reshape(-1).view(np.uint8))):
        assert len(chunk.data) <= CHUNK_BYTES
        assembler.add(chunk)
    assert assembler.complete
    np.testing.assert_array_equal(assembler.array(), sent)


def test_float16_is_widened() -> None:
    """Half precision becomes the float32 of the same value."""
    sent = np.array([[1.5, -2.0, 65504.0]], np.float16)
    assembler = TensorAssembler(_spec(1, 3, tensor_pb2.DATA_TYPE_FLOAT16), rows=1, width=3, max_bytes=100, path="f")
    assembler.add(tensor_pb2.TensorChunk(data=sent.tobytes()))
    np.testing.assert_array_equal(assembler.array(), sent.astype(np.float32))


def test_bfloat16_is_widened() -> None:
    """bfloat16 is the upper half of a float32: values that fit come back exactly."""
    values = np.array([[1.5, -2.0, 3.0e38]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    assembler = TensorAssembler(_spec(1, 3, tensor_pb2.DATA_TYPE_BFLOAT16), rows=1, width=3, max_bytes=100, path="f")
    assembler.add(tensor_pb2.TensorChunk(data=halves.tobytes()))
    np.testing.assert_array_equal(assembler.array()[0, :2], values[0, :2])
    np.testing.assert_allclose(assembler.array(), values, rtol=2**-7)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (_spec(3, 5), "f.shape"),
        (_spec(4, 4), "f.shape"),
        (tensor_pb2.TensorSpec(dtype=F32, shape=[12]), "f.shape"),
        (tensor_pb2.TensorSpec(dtype=F32), "f.shape"),
        (tensor_pb2.TensorSpec(shape=[3, 4]), "f.dtype"),
        (tensor_pb2.TensorSpec(dtype=99, shape=[3, 4]), "f.dtype"),  # type: ignore[arg-type]  # what an enum lets through
    ],
)
def test_a_wrong_spec_is_refused(spec: tensor_pb2.TensorSpec, field: str) -> None:
    """Another shape, rank or type than expected names the field."""
    with pytest.raises(ServiceError) as caught:
        TensorAssembler(spec, rows=3, width=4, max_bytes=1 << 30, path="f")
    assert caught.value.violations[0].field == field


def test_size_is_bounded_before_allocation() -> None:
    """An announced size over the limit is refused by its number, however large."""
    rows = 1 << 40
    with pytest.raises(ServiceError) as caught:
        TensorAssembler(_spec(rows, 4), rows=rows, width=4, max_bytes=1 << 20, path="f")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.metadata == {"limit": str(1 << 20)}


@pytest.mark.parametrize(("offset", "size"), [(4, 4), (0, 49), (48, 1)])
def test_gaps_and_overruns_are_refused(offset: int, size: int) -> None:
    """A chunk that is not the next one, or is too long, is refused."""
    with pytest.raises(ServiceError) as caught:
        _assembler().add(tensor_pb2.TensorChunk(offset=offset, data=bytes(size)))
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_a_chunk_has_a_limit() -> None:
    """A chunk over 1 MiB is refused, though the tensor has room for it."""
    with pytest.raises(ServiceError) as caught:
        _assembler(1024, 1024).add(tensor_pb2.TensorChunk(data=bytes(CHUNK_BYTES + 1)))
    assert caught.value.violations[0].field == "f.data"


def test_an_unfinished_tensor_cannot_be_read() -> None:
    """Reading before the last byte is a programming error, not half a tensor."""
    assembler = _assembler()
    assembler.add(tensor_pb2.TensorChunk(data=bytes(16)))
    assert not assembler.complete
    with pytest.raises(ValueError, match="16 of 48"):
        assembler.array()
