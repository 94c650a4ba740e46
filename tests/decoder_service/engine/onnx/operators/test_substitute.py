"""Which operators are ours, and that a graph computes the same with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import exporter
from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.model import Piece
from decoder_service.engine.onnx import operators
from decoder_service.engine.onnx.runner import Runner
from serving.bundle import Bundle
from tests.decoder_service.engine.onnx.operators.graphs import needs_avx512_vnni


@pytest.fixture(scope="module")
def rounded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The checkpoint with its two rounded graphs."""
    return exporter.export(checkpoint, tmp_path_factory.mktemp("operators") / "bundle", progress=False)


@needs_avx512_vnni
def test_they_are_there_where_they_can_run() -> None:
    """Installing has compiled them."""
    assert operators.library() is not None


def test_every_operator_that_has_a_twin_of_ours_is_taken(rounded: Bundle) -> None:
    """All 4-bit matmuls, all attention and all rounding of an exported bundle."""
    layers = rounded.text.num_hidden_layers
    # Rows are rounded for Q, K and V, for the output projection, for gate and up, for down, and for the head.
    expected = {"int4": {"MatMulNBits": 7 * layers + 1}, "int8": {"RoundRows": 4 * layers + 1}}
    for precision, own in expected.items():
        model = onnx.load(rounded.graph_path(precision), load_external_data=False)
        counts = {**own, "GroupQueryAttentionInt8": layers}
        assert operators.substitute(model, head_size=rounded.text.head_dim) == sum(counts.values())
        ours = [node.op_type for node in model.graph.node if node.domain == operators.DOMAIN]
        assert {name: ours.count(name) for name in ours} == counts
        assert not {node.op_type for node in model.graph.node if node.domain != operators.DOMAIN} & {
            *counts,
            "GroupQueryAttention",
            "Abs",
        }


def test_other_processors_use_onnx_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One instruction set that is missing is enough."""
    monkeypatch.setattr(operators, "cpu_flags", lambda: {"sse2", "avx2", "avx512f", "avx512_vnni"})
    assert operators.library() is None


@needs_avx512_vnni
def test_a_whole_graph_computes_the_same(bundle: Bundle, rounded: Bundle) -> None:
    """The logits of both rounded graphs are as near to float32's as with ONNX Runtime's operators."""
    ids = np.random.default_rng(3).integers(0, 250, 30).astype(np.int32)

    def logits(
        used: Bundle, precision: str, library: Path | None, kv_dtype: operators.KvDtype = "float16"
    ) -> NDArray[np.float32]:
        text = used.text
        embedding = used.decoder_dir / "embedding.onnx"
        runner = Runner(
            embedding,
            threads=1,
            layers=text.num_hidden_layers,
            head_size=text.head_dim,
            operators=library,
            kv_dtype=kv_dtype,
        )
        runner.load(precision, used.graph_path(precision))
        shape = {"heads": text.num_key_value_heads, "length": 64, "width": runner.cache_width}
        runner.use(KvCache(layers=text.num_hidden_layers, slots=1, dtype=runner.cache_dtype, **shape).buffers)
        nothing = np.zeros((0, used.feature_width), np.float32)
        return runner.run(precision, piece=Piece(0, 0, ids, nothing, np.broadcast_to(np.arange(30), (3, 30))))

    def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return float(np.sqrt(np.mean((one - other) ** 2)))

    exact = logits(bundle, "fp32", None)
    # What is not rounded stays as it was exported.
    np.testing.assert_array_equal(logits(bundle, "fp32", operators.library()), exact)
    for precision in ("int4", "int8"):
        theirs, ours = (logits(rounded, precision, library) for library in (None, operators.library()))
        assert distance(ours, exact) < 1.1 * distance(theirs, exact)
        assert distance(logits(rounded, precision, operators.library(), "int8"), exact) < (
            1.5 * distance(theirs, exact)
        )
        # Other roundings follow from the least difference, yet both differ by less than from float32.
        assert distance(ours, theirs) < distance(theirs, exact)
