"""Our 4-bit matmul computes what ONNX Runtime's does, row by row, and takes only the nodes of which that is so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

import exporter
from decoder_service import kernel
from decoder_service.engine.kv import KvCache
from decoder_service.engine.model import Piece
from decoder_service.engine.runner import Runner
from serving.bundle import Bundle
from serving.cores import cpu_flags

needs_avx512_vnni = pytest.mark.skipif("avx512_vnni" not in cpu_flags(), reason="this processor has no AVX-512 VNNI")


def one_matmul(
    n: int, k: int, block: int, *, zero_points: bool = False, order: bool = False, **attributes: int
) -> ModelProto:
    """A graph of one matmul with random weights; its input is [batch, sequence, K]."""
    rng = np.random.default_rng(n + k + block)
    blocks = -(-k // block)
    constants = {
        "b": rng.integers(0, 256, (n, blocks, block // 2), dtype=np.uint8),
        # Of any sign and of many magnitudes; one channel has no weights at all.
        "scales": (rng.choice([-1, 1], (n, blocks)) * np.exp(rng.normal(-4, 1, (n, blocks)))).astype(np.float32),
    }
    constants["scales"][n // 2] = 0
    if zero_points:
        constants["zero_points"] = np.full((n, -(-blocks // 2)), 0x77, np.uint8)
    inputs = ["a", *constants]
    if order:
        constants["order"] = np.sort(np.arange(k, dtype=np.int32) % blocks)
        inputs = ["a", "b", "scales", "", "order"]
    given = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 4, **attributes}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **given)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", "sequence", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", n])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(model: ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    """A graph as it is, or with our operator where it is substituted."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if any(node.domain == kernel.DOMAIN for node in model.graph.node):
        options.register_custom_ops_library(str(kernel.library()))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def both(model: ModelProto) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """ONNX Runtime's operator and ours."""
    theirs = session(model)
    assert kernel.substitute(model) == 1
    return theirs, session(model)


def run(used: ort.InferenceSession, a: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a graph of one matmul gives."""
    (y,) = used.run(["y"], {"a": a})
    return np.asarray(y)


@needs_avx512_vnni
def test_it_is_there_where_it_can_run() -> None:
    """Installing has compiled it."""
    assert kernel.library() is not None


@needs_avx512_vnni
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("n", [16, 37, 4112])
def test_it_computes_what_onnx_runtime_does(n: int, block: int) -> None:
    """For whole and partial tiles of channels, any number of rows, rows of zeros, and none at all."""
    theirs, ours = both(one_matmul(n, 256, block))
    rng = np.random.default_rng(1)
    for shape in [(1, 1), (1, 3), (5, 1), (2, 4), (1, 9), (3, 7), (1, 70)]:
        a = (rng.normal(size=(*shape, 256)) * np.exp(rng.normal(size=(*shape, 1)))).astype(np.float32)
        a[0, 0, :block] = 0
        expected = run(theirs, a)
        np.testing.assert_allclose(run(ours, a), expected, rtol=0, atol=1e-3 * np.abs(expected).max())
        # Negative control: activations that lie in another order are felt.
        assert np.abs(run(ours, np.roll(a, 1, -1)) - expected).max() > 0.1 * np.abs(expected).max()
    assert not run(ours, np.zeros((1, 2, 256), np.float32)).any()
    assert run(ours, np.zeros((1, 0, 256), np.float32)).shape == (1, 0, n)


@needs_avx512_vnni
def test_a_row_is_what_it_is_alone() -> None:
    """To the last bit, whatever else is in the batch and however many threads compute it."""
    model = one_matmul(4112, 192, 32)
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
    kernel.substitute(model)
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
        one_matmul(16, 64, 32, bits=8),
        one_matmul(16, 64, 32, accuracy_level=0),
        one_matmul(16, 64, 16),
        one_matmul(16, 80, 32),
        one_matmul(16, 64, 32, zero_points=True),
        one_matmul(16, 64, 32, order=True),
    ],
    ids=["8 bits", "float activations", "short blocks", "a block cut short", "zero points", "an order"],
)
def test_it_takes_nothing_that_it_computes_otherwise(other: ModelProto) -> None:
    """What is not the very same matmul stays ONNX Runtime's."""
    before = other.SerializeToString()
    assert kernel.substitute(other) == 0
    assert other.SerializeToString() == before


def test_other_processors_use_onnx_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One instruction set that is missing is enough."""
    monkeypatch.setattr(kernel, "cpu_flags", lambda: {"sse2", "avx2", "avx512f", "avx512_vnni"})
    assert kernel.library() is None


@needs_avx512_vnni
def test_a_whole_graph_computes_with_it(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """Every 4-bit matmul of an exported graph is taken, and the logits are as near to float32's as before."""
    rounded = exporter.export(checkpoint, tmp_path / "bundle", progress=False)
    graph = onnx.load(rounded.graph_path("int4"), load_external_data=False)
    matmuls = sum(node.op_type == "MatMulNBits" for node in graph.graph.node)
    assert kernel.substitute(graph) == matmuls > 0
    ids = np.random.default_rng(3).integers(0, 250, 30).astype(np.int32)

    def logits(used: Bundle, precision: str, library: Path | None) -> NDArray[np.float32]:
        text = used.text
        embedding = used.decoder_dir / "embedding.onnx"
        runner = Runner(embedding, threads=1, layers=text.num_hidden_layers, kernel=library)
        runner.load(precision, used.graph_path(precision))
        shape = {"heads": text.num_key_value_heads, "length": 64, "width": text.head_dim}
        runner.use(KvCache(layers=text.num_hidden_layers, rows=1, dtype=runner.cache_dtype, **shape))
        nothing = np.zeros((0, used.feature_width), np.float32)
        return runner.run(precision, piece=Piece(0, 0, ids, nothing, np.broadcast_to(np.arange(30), (3, 30))))

    def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((one - other) ** 2)))

    exact = logits(bundle, "fp32", None)
    theirs, ours = (logits(rounded, "int4", library) for library in (None, kernel.library()))
    assert distance(ours, exact) < 1.1 * distance(theirs, exact)
    # They differ, since other roundings follow from the least difference; but by far less than both do from float32.
    assert 0 < distance(ours, theirs) < 0.2 * distance(theirs, exact)
