"""Our matmul of 4 and 8 bits computes what it says, row by row, and takes only the nodes of which that is so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from decoder_service.engine.onnx import operators
from tests.decoder_service.engine.onnx.operators.graphs import both, model_of, needs_avx512_vnni, session


def one_matmul(
    n: int, k: int, block: int, *, bits: int = 4, zero_points: bool = False, order: bool = False, **attributes: int
) -> ModelProto:
    """A graph of one matmul with random weights; its input is [batch, sequence, K]."""
    rng = np.random.default_rng(n + k + block)
    blocks = -(-k // block)
    constants = {
        "b": rng.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8),
        # Of any sign and of many magnitudes; one channel has no weights at all.
        "scales": (rng.choice([-1, 1], (n, blocks)) * np.exp(rng.normal(-4, 1, (n, blocks)))).astype(np.float32),
    }
    constants["scales"][n // 2] = 0
    if zero_points:
        constants["zero_points"] = np.full((n, -(-blocks * bits // 8)), 0x77, np.uint8)
    inputs = ["a", *constants]
    if order:
        constants["order"] = np.sort(np.arange(k, dtype=np.int32) % blocks)
        inputs = ["a", "b", "scales", "", "order"]
    given = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4, **attributes}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **given)
    return model_of(
        [node],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", "sequence", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", n])],
        constants,
    )


def run(used: ort.InferenceSession, a: NDArray[np.float32]) -> NDArray[np.float32]:
    """What it gives."""
    (y,) = used.run(["y"], {"a": a})
    return np.asarray(y)


def computed(model: ModelProto, a: NDArray[np.float32]) -> NDArray[np.float64]:
    """The scheme in numpy: activations rounded to 8 bits by block, integers multiplied, everything else exact."""
    (node,) = model.graph.node
    known = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    b, scales = (numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    n, blocks, _ = b.shape
    weights: NDArray[Any] = b
    if known["bits"] == 4:
        weights = np.stack([b & 15, b >> 4], axis=-1).reshape(n, blocks, -1)
    weights = weights.astype(np.int64) - 2 ** (known["bits"] - 1)
    rows = a.reshape(-1, blocks, known["block_size"])
    steps = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), steps, out=np.zeros_like(steps), where=steps > 0)
    integers = np.rint(rows * inverse).astype(np.int64)
    sums = np.einsum("rbi,nbi->rnb", integers, weights)
    y = (sums * steps[:, None, :, 0].astype(np.float64) * scales.astype(np.float64)).sum(-1)
    return np.asarray(y.reshape(*a.shape[:-1], n))


def activations(*shape: int) -> NDArray[np.float32]:
    """Rows of many magnitudes; the first begins with zeros."""
    rng = np.random.default_rng(1)
    a = (rng.normal(size=shape) * np.exp(rng.normal(size=(*shape[:-1], 1)))).astype(np.float32)
    a[0, 0, :32] = 0
    return a


@needs_avx512_vnni
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128, 256])
@pytest.mark.parametrize("n", [16, 37, 1031])
def test_it_computes_the_scheme(n: int, block: int, bits: int) -> None:
    """For whole and partial tiles of channels and every number of rows it is numpy's, but for scales in float16."""
    model = one_matmul(n, 256, block, bits=bits)
    expected = {rows: computed(model, activations(1, rows, 256)) for rows in (*range(1, 10), 17)}
    _, ours = both(model)
    for rows, y in expected.items():
        a = activations(1, rows, 256)
        # A share of a scale has 11 bits, and of a hundred sums some are off by as much.
        np.testing.assert_allclose(run(ours, a), y, rtol=0, atol=3e-4 * np.abs(y).max())
        # Negative control: activations that lie in another order are felt.
        assert np.abs(run(ours, np.roll(a, 1, -1)) - y).max() > 0.1 * np.abs(y).max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
def test_onnx_runtimes_computes_the_scheme_too(block: int, bits: int) -> None:
    """On any processor, with zero in the middle where no zero points are given: bundles are served without ours."""
    model = one_matmul(37, 256, block, bits=bits)
    for rows in (1, 3, 9):
        a = activations(1, rows, 256)
        y = computed(model, a)
        np.testing.assert_allclose(run(session(model), a), y, rtol=0, atol=3e-3 * np.abs(y).max())


@needs_avx512_vnni
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("n", [16, 37, 4112])
def test_it_computes_what_onnx_runtime_does(n: int, block: int, bits: int) -> None:
    """For whole and partial tiles of channels, any number of rows, rows of zeros, and none at all."""
    theirs, ours = both(one_matmul(n, 256, block, bits=bits))
    for shape in [(1, 1), (5, 1), (2, 4), (3, 7), (1, 70)]:
        a = activations(*shape, 256)
        expected = run(theirs, a)
        np.testing.assert_allclose(run(ours, a), expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    assert not run(ours, np.zeros((1, 2, 256), np.float32)).any()
    assert run(ours, np.zeros((1, 0, 256), np.float32)).shape == (1, 0, n)


@needs_avx512_vnni
@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_is_what_it_is_alone(bits: int) -> None:
    """To the last bit, whatever else is in the batch and however many threads compute it."""
    model = one_matmul(4112, 192, 32, bits=bits)
    _, ours = both(model)
    a = np.random.default_rng(2).normal(size=(1, 23, 192)).astype(np.float32)
    together = run(ours, a)
    for row in range(23):
        np.testing.assert_array_equal(run(ours, a[:, row : row + 1]), together[:, row : row + 1])
    np.testing.assert_array_equal(run(session(model, threads=2), a), together)


@needs_avx512_vnni
def test_what_does_not_fit_is_said() -> None:
    """Rows of another length, and weights that are not constants, end in an error, not in a crash."""
    model = one_matmul(16, 64, 32)
    operators.substitute(model, head_size=32)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    with pytest.raises(Exception, match="A's last axis is not as long as B's rows"):
        run(session(model), np.zeros((1, 1, 32), np.float32))
    b = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(b.name, b.data_type, b.dims))
    model.graph.initializer.remove(b)
    with pytest.raises(Exception, match="B and scales have to be constants"):
        session(model)


@pytest.mark.parametrize(
    "other",
    [
        one_matmul(16, 64, 32, bits=2),
        one_matmul(16, 64, 32, accuracy_level=0),
        one_matmul(16, 64, 16),
        one_matmul(16, 80, 32),
        one_matmul(16, 64, 32, zero_points=True),
        one_matmul(16, 64, 32, order=True),
    ],
    ids=["2 bits", "float activations", "short blocks", "a block cut short", "zero points", "an order"],
)
def test_it_takes_nothing_that_it_computes_otherwise(other: ModelProto) -> None:
    """What is not the very same matmul stays ONNX Runtime's."""
    before = other.SerializeToString()
    assert operators.substitute(other, head_size=32) == 0
    assert other.SerializeToString() == before
