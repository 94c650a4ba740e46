"""Our rounding of rows is the exporter's chain of operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from decoder_service.engine.onnx import operators
from tests.decoder_service.engine.onnx.operators.graphs import both, model_of, needs_avx512_vnni


def one_chain(k: int, *, divided: str = "x") -> ModelProto:
    """The chain of exporter/families/shared/int8.py."""
    nodes = [
        helper.make_node("Abs", ["x"], ["abs"], name="/a/int8/Abs"),
        helper.make_node("ReduceMax", ["abs", "axes"], ["max"], name="/a/int8/Max", keepdims=1),
        helper.make_node("Max", ["max", "tiny"], ["largest"], name="/a/int8/Floor"),
        helper.make_node("Div", [divided, "largest"], ["unit"], name="/a/int8/Div"),
        helper.make_node("QuantizeLinear", ["unit", "step", "zero"], ["y"], name="/a/int8/Round"),
    ]
    constants = {
        "axes": np.array([-1], np.int64),
        "tiny": np.float32(1e-30).reshape(()),
        "step": np.float32(1 / 127).reshape(()),
        "zero": np.uint8(128).reshape(()),
    }
    shape = ["batch", "sequence", k]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in {"x", divided}]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.UINT8, shape),
        helper.make_tensor_value_info("largest", TensorProto.FLOAT, [*shape[:2], 1]),
    ]
    return model_of(nodes, inputs, outputs, constants)


@needs_avx512_vnni
@pytest.mark.parametrize("k", [1, 16, 77, 2048])
def test_it_computes_what_the_chain_does(k: int) -> None:
    """The magnitude exactly, and each step but where a value lies between two; rows of zeros, and none at all."""
    theirs, ours = both(one_chain(k))
    rng = np.random.default_rng(k)
    for shape in [(1, 1), (3, 1), (1, 40), (2, 5), (1, 0)]:
        x = (rng.normal(size=(*shape, k)) * np.exp(4 * rng.normal(size=(*shape, 1)))).astype(np.float32)
        x[:, -1:] = 0
        (expected, expected_largest), (y, largest) = (used.run(["y", "largest"], {"x": x}) for used in (theirs, ours))
        np.testing.assert_array_equal(largest, expected_largest)
        difference = np.abs(y.astype(int) - expected.astype(int))
        assert difference.max(initial=0) <= 1
        assert difference.mean() < 1e-3 if difference.size > 1000 else difference.sum() <= 1
        assert (y[:, -1:] == 128).all()


def test_another_chain_is_left_alone() -> None:
    """Where what is divided is not what was measured, the five operators stay."""
    other = one_chain(16, divided="z")
    before = other.SerializeToString()
    assert operators.substitute(other, head_size=32) == 0
    assert other.SerializeToString() == before
