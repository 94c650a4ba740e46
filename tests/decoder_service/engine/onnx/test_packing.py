"""A packed graph computes what the exported one does, for answers, a chunk, or both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

import exporter
from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.operators import KvDtype, library
from decoder_service.engine.onnx.packing import pack
from decoder_service.engine.onnx.runner import Runner
from serving.bundle import Bundle
from tests.decoder_service.engine.onnx.operators.graphs import needs_avx512_vnni


@pytest.fixture(scope="module")
def rounded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The checkpoint with its two rounded graphs."""
    return exporter.export(checkpoint, tmp_path_factory.mktemp("packing") / "bundle", progress=False)


class Exported:
    """A graph as it was exported, without a cache that is shared: what is right by definition."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        self._embedding = ort.InferenceSession(bundle.decoder_dir / "embedding.onnx")
        self._session = ort.InferenceSession(bundle.graph_path(precision))
        text = bundle.text
        self._empty = np.zeros((1, text.num_key_value_heads, 0, text.head_dim), np.float32)
        self._names = [value.name for value in self._session.get_inputs() if value.name.startswith("past")]

    def logits(self, *parts: tuple[NDArray[np.int32], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Of the last token, after tokens and their features in several pieces."""
        held, start = dict.fromkeys(self._names, self._empty), 0
        for ids, features in parts:
            feed = {"input_ids": ids[None].astype(np.int64), "image_features": features}
            (embeddings,) = self._embedding.run(None, feed)
            stop = start + ids.size
            inputs = {
                "inputs_embeds": embeddings,
                "attention_mask": np.ones((1, stop), np.int64),
                "position_ids": np.broadcast_to(np.arange(start, stop), (3, 1, ids.size)),
            }
            logits, *present = self._session.run(None, {**inputs, **held})
            outputs = [value.name for value in self._session.get_outputs()][1:]
            by_name = dict(zip(outputs, present, strict=True))
            held = {name: by_name[name.replace("past_key_values", "present")] for name in self._names}
            start = stop
        return np.asarray(logits[0, -1])


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
def test_it_computes_what_was_exported(bundle: Bundle, rounded: Bundle, precision: str) -> None:
    """Two answers, a chunk with a picture's features, and both at once; wrong features are felt by the chunk alone."""
    used = bundle if precision == "fp32" else rounded
    runner = Runner(
        used.decoder_dir / "embedding.onnx", threads=1, layers=used.text.num_hidden_layers, head_size=used.text.head_dim
    )
    runner.load("it", used.graph_path(precision))
    runner.use(_cache(used, runner).buffers)
    exported = Exported(used, precision)
    rng = np.random.default_rng(3)
    nothing = np.zeros((0, used.feature_width), np.float32)
    features = rng.normal(size=(4, used.feature_width)).astype(np.float32)
    prompts = [rng.integers(0, 250, length).astype(np.int32) for length in (12, 30)]
    # What an answer draws may be a media token, which has no features: the chunk's must not go to it.
    drawn = np.array([used.media_tokens.image, 7], np.int32)
    before = rng.integers(0, 250, 9).astype(np.int32)
    chunk = np.array([5, *[used.media_tokens.image] * 4, 6], np.int32)

    def piece(row: int, start: int, ids: NDArray[np.int32], rows: NDArray[np.float32]) -> Piece:
        return Piece(row, start, ids, rows, np.broadcast_to(np.arange(start, start + ids.size), (3, ids.size)))

    for row, ids in enumerate([*prompts, before]):
        logits = runner.run("it", piece=piece(row, 0, ids, nothing))
        np.testing.assert_allclose(logits[0], exported.logits((ids, nothing)), atol=1e-4)
    lengths = np.array([ids.size for ids in prompts])
    step, part = Step(0, lengths, drawn, lengths), piece(2, 9, chunk, features)
    alone = [exported.logits((ids, nothing), (drawn[[row]], nothing)) for row, ids in enumerate(prompts)]
    alone.append(exported.logits((before, nothing), (chunk, features)))
    expected = np.stack(alone)
    np.testing.assert_allclose(runner.run("it", step=step), expected[:2], atol=1e-4)
    np.testing.assert_allclose(runner.run("it", piece=part), expected[2:], atol=1e-4)
    np.testing.assert_allclose(runner.run("it", step=step, piece=part), expected, atol=1e-4)
    # The same behind a picture, in the piece of a request that is prefilled again with its answer.
    again = replace(piece(2, 9, np.concatenate([chunk, drawn]), features), generated=2)
    (behind,) = runner.run("it", piece=again)
    np.testing.assert_allclose(
        behind, exported.logits((before, nothing), (chunk, features), (drawn, nothing)), atol=1e-4
    )
    (nowhere,) = runner.run("it", piece=replace(piece(2, 15, drawn, nothing), generated=2))
    np.testing.assert_allclose(nowhere, behind, atol=1e-4)
    wrong = runner.run("it", step=step, piece=piece(2, 9, chunk, features[::-1]))
    np.testing.assert_allclose(wrong[:2], expected[:2], atol=1e-4)
    assert np.abs(wrong[2] - expected[2]).max() > 1e-2


@needs_avx512_vnni
@pytest.mark.parametrize(("precision", "kv_dtype"), [("int4", "int8"), ("int4", "float16"), ("int8", "int8")])
def test_with_our_operators_too(rounded: Bundle, precision: str, kv_dtype: KvDtype) -> None:
    """Answers and a chunk in one run are, to the last bit, what they are in one each."""
    text = rounded.text
    runner = Runner(
        rounded.decoder_dir / "embedding.onnx",
        threads=1,
        layers=text.num_hidden_layers,
        head_size=text.head_dim,
        operators=library(),
        kv_dtype=kv_dtype,
    )
    runner.load("it", rounded.graph_path(precision))
    runner.use(_cache(rounded, runner).buffers)
    assert (runner.cache_dtype, runner.cache_width) == (np.dtype(kv_dtype), text.head_dim + 4 * (kv_dtype == "int8"))
    nothing = np.zeros((0, rounded.feature_width), np.float32)
    rng = np.random.default_rng(4)

    def piece(row: int, start: int, size: int) -> Piece:
        ids = rng.integers(0, 250, size).astype(np.int32)
        return Piece(row, start, ids, nothing, np.broadcast_to(np.arange(start, start + size), (3, size)))

    for row, size in enumerate((12, 30, 9)):
        runner.run("it", piece=piece(row, 0, size))
    lengths = np.array([12, 30])
    step, chunk = Step(0, lengths, np.array([5, 7], np.int32), lengths), piece(2, 9, 6)
    alone = np.concatenate([runner.run("it", step=step), runner.run("it", piece=chunk)])
    np.testing.assert_array_equal(runner.run("it", step=step, piece=chunk), alone)
    # Negative control: the chunk begins a place later.
    other = runner.run("it", step=step, piece=replace(chunk, start=10, positions=chunk.positions + 1))
    np.testing.assert_array_equal(other[:2], alone[:2])
    assert np.abs(other[2] - alone[2]).max() > 1e-3


@needs_avx512_vnni
@pytest.mark.parametrize(("precision", "kv_dtype"), [("int4", "int8"), ("int8", "int8"), ("int8", "float16")])
def test_where_it_is_cut_changes_no_bit(rounded: Bundle, precision: str, kv_dtype: KvDtype) -> None:
    """A prompt into chunks, or the graph into parts: logits, keys and values are the same.

    With ONNX Runtime's operators they are not quite: its attention computes a single token in another way than several.
    """
    text = rounded.text
    runner = Runner(
        rounded.decoder_dir / "embedding.onnx",
        threads=1,
        layers=text.num_hidden_layers,
        head_size=text.head_dim,
        operators=library(),
        kv_dtype=kv_dtype,
    )
    runner.load("whole", rounded.graph_path(precision))
    runner.load("parts", rounded.graph_path(precision), layers_at_once=1)
    assert (runner.parts("whole"), runner.parts("parts")) == (1, text.num_hidden_layers + 1)
    cache = _cache(rounded, runner)
    runner.use(cache.buffers)
    nothing = np.zeros((0, rounded.feature_width), np.float32)
    ids = np.random.default_rng(6).integers(0, 250, 43).astype(np.int32)

    def read(graph: str, row: int, size: int, *, head: bool = True) -> list[NDArray[np.float32] | None]:
        """What the parts of the last chunk give; keys and values have to be those of row 0."""
        for start in range(0, 43, size):
            stop = min(start + size, 43)
            where = np.broadcast_to(np.arange(start, stop), (3, stop - start))
            given = list(
                runner.run_by_parts(graph, piece=Piece(row, start, ids[start:stop], nothing, where), head=head)
            )
        for buffer in cache.buffers:
            np.testing.assert_array_equal(buffer[row, :, :43], buffer[0, :, :43])
        return given

    (whole,) = read("whole", 0, 43)
    for size in (1, 2, 3, 7, 41, 43):
        (logits,) = read("whole", 1, size)
        np.testing.assert_array_equal(logits, whole)
        *before, logits = read("parts", 2, size)
        np.testing.assert_array_equal(logits, whole)
        assert before == [None] * text.num_hidden_layers
    # Without the head a part less is computed, and the same is kept.
    cache.buffers[0][3], cache.buffers[-1][3] = 0, 0
    assert read("parts", 3, 43, head=False) == [None] * text.num_hidden_layers
    # Negative control: a token of a step has the same keys and values in another way.
    last = np.array([42])
    step = runner.run("whole", step=Step(1, last, ids[42:], last))
    assert np.abs(step - whole).max() < 1e-2
    # Where all of it is rounded to 8 bits, so small a difference may vanish.
    assert not np.array_equal(step, whole) or precision == kv_dtype


def test_graphs_that_give_all_logits_serve_too(bundle: Bundle, tmp_path: Path) -> None:
    """Earlier bundles' graphs do: the wanted ones are picked from them."""
    model = onnx.load(bundle.graph_path("fp32"))
    last = next(node for node in model.graph.node if node.name == "/lm_head/prune/Gather")
    unsqueeze = next(node for node in model.graph.node if last.output[0] in node.input)
    for node in model.graph.node:
        node.input[:] = [last.input[0] if name == unsqueeze.output[0] else name for name in node.input]
    for node in (last, unsqueeze):
        model.graph.node.remove(node)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    onnx.save(model, tmp_path / "model.onnx")
    runner = Runner(
        bundle.decoder_dir / "embedding.onnx",
        threads=1,
        layers=bundle.text.num_hidden_layers,
        head_size=bundle.text.head_dim,
    )
    runner.load("now", bundle.graph_path("fp32"))
    runner.load("before", tmp_path / "model.onnx")
    runner.use(_cache(bundle, runner).buffers)
    ids = np.arange(10, 20, dtype=np.int32)
    nothing = np.zeros((0, bundle.feature_width), np.float32)
    piece = Piece(0, 0, ids, nothing, np.broadcast_to(np.arange(10), (3, 10)))
    np.testing.assert_array_equal(runner.run("before", piece=piece), runner.run("now", piece=piece))


def test_what_cannot_be_packed_is_refused(bundle: Bundle) -> None:
    """A graph of another kind, or attention with more inputs than are known, would compute something else."""
    with pytest.raises(ValueError, match="no GroupQueryAttention"):
        pack(helper.make_graph([], "nothing", [], []))
    model = onnx.load(bundle.graph_path("fp32"), load_external_data=False)
    attention = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    attention.input[7] = "cos_cache"
    with pytest.raises(ValueError, match=r"GroupQueryAttention has inputs .*cos_cache"):
        pack(model.graph)


def _cache(bundle: Bundle, runner: Runner) -> KvCache:
    text = bundle.text
    return KvCache(
        layers=text.num_hidden_layers,
        slots=4,
        heads=text.num_key_value_heads,
        length=64,
        width=runner.cache_width,
        dtype=runner.cache_dtype,
    )
