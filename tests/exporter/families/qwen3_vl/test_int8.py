"""The INT8 graph computes what its description says, and stands in for the INT4 one at any step."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from exporter.divergence import kl_divergence
from exporter.quantize import STEPS, pack_int8
from serving.bundle import Bundle
from tests.exporter.families.qwen3_vl.reference import Prompt, Reference

Cache = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Step:
    """What a run gave: logits [batch, vocabulary] and the cache, ready to be the next run's past."""

    logits: NDArray[np.float32]
    cache: Cache


class Decoder:
    """One graph of a bundle, without any library around it."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        self.session = _session(bundle.graph_path(precision))
        self._text = bundle.text

    def run(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], past: Cache | None = None) -> Step:
        """Run embeds [batch, sequence, width] at positions [3, batch, sequence] after `past`."""
        batch, length, _ = embeds.shape
        empty = np.zeros((batch, self._text.num_key_value_heads, 0, self._text.head_dim), np.float32)
        names = [value.name for value in self.session.get_inputs() if value.name.startswith("past_key_values")]
        held = past if past is not None else dict.fromkeys(names, empty)
        total = next(iter(held.values())).shape[2] + length
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((batch, total), np.int64),
            "position_ids": positions,
            **held,
        }
        outputs = [value.name for value in self.session.get_outputs()]
        values = dict(zip(outputs, self.session.run(outputs, inputs), strict=True))
        cache = {name.replace("present", "past_key_values"): v for name, v in values.items() if name != "logits"}
        return Step(values["logits"][:, -1], cache)


def _session(graph: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    # Exact integer products also on processors without VNNI, where the fast ones may saturate.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class Input:
    """A prompt as the decoder graphs take it: embeds [1, sequence, width] and positions [3, 1, sequence]."""

    embeds: NDArray[np.float32]
    positions: NDArray[np.int64]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Reference:
    """The base shape in transformers."""
    return Reference(checkpoint)


@pytest.fixture(scope="module")
def given(reference: Reference, fp32_bundle: Bundle) -> Input:
    """A prompt with an image."""
    prompt = reference.prompt("What is in the picture?", images=[(4, 6)])
    return _input(reference, fp32_bundle, prompt)


def _input(reference: Reference, bundle: Bundle, prompt: Prompt) -> Input:
    session = ort.InferenceSession(bundle.decoder_dir / "embedding.onnx")
    feed = {"input_ids": prompt.ids[None].numpy(), "image_features": reference.features(prompt)}
    (embeds,) = session.run(None, feed)
    return Input(embeds, reference.positions(prompt)[:, None])


def test_inputs_outputs_and_cache_are_those_of_int4(int4_bundle: Bundle) -> None:
    """Names, types and shapes of everything that enters and leaves are equal, in the same order."""
    int4, int8 = (Decoder(int4_bundle, precision).session for precision in ("int4", "int8"))
    for values in (lambda s: s.get_inputs(), lambda s: s.get_outputs()):
        described = [[(v.name, v.type, v.shape) for v in values(session)] for session in (int4, int8)]
        assert described[0] == described[1]


def test_it_stays_near_float32(int4_bundle: Bundle, fp32_bundle: Bundle, given: Input) -> None:
    """With an image in the prompt, logits follow the float32 ones closely, and closer than INT4's."""
    exact, int4, int8 = (
        Decoder(bundle, precision).run(given.embeds, given.positions).logits
        for bundle, precision in ((fp32_bundle, "fp32"), (int4_bundle, "int4"), (int4_bundle, "int8"))
    )
    assert kl_divergence(exact, int8).item() < 0.02
    assert np.corrcoef(exact, int8)[0, 1] > 0.99
    assert kl_divergence(exact, int8).item() < kl_divergence(exact, int4).item()


def test_every_matmul_is_what_numpy_makes_of_it(
    int4_bundle: Bundle, checkpoint: Path, given: Input, tmp_path: Path
) -> None:
    """Each projection, fed what the graph feeds it, is numpy's rounding of the checkpoint's weights and the rows."""
    model = onnx.load(int4_bundle.graph_path("int8"))
    integers = [node for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(integers) == 7 * int4_bundle.text.num_hidden_layers + 1
    sources = {node.output[0]: node for node in model.graph.node}
    outputs = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Mul"}
    watched = {}
    for node in integers:
        rounded = sources[node.input[0]]
        divided = sources[rounded.input[0]]
        watched[node.name.removesuffix("/Integer")] = (divided.input[0], outputs[node.output[0]])
    known = {value.name for value in model.graph.output}
    for name in {name for pair in watched.values() for name in pair} - known:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx")
    session = _session(tmp_path / "model.onnx")
    past = {
        value.name: np.zeros((1, int4_bundle.text.num_key_value_heads, 0, int4_bundle.text.head_dim), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values")
    }
    names = sorted({name for pair in watched.values() for name in pair})
    mask = np.ones(given.embeds.shape[:2], np.int64)
    feed = {"inputs_embeds": given.embeds, "attention_mask": mask, "position_ids": given.positions, **past}
    values = dict(zip(names, session.run(names, feed), strict=True))

    weights = load_file(checkpoint / "model.safetensors")
    for name, (read, written) in watched.items():
        expected = _rounded_product(values[read], _weight(weights, name))
        # A row that lies between two integers may be rounded the other way: a step of the grid, and no more.
        error = np.abs(values[written] - expected).max()
        assert error < 1e-3 * np.abs(expected).max(), name
        exact = values[read] @ _weight(weights, name).T
        assert np.abs(expected - exact).max() > 1e-3 * np.abs(exact).max(), "the model of it rounds nothing"


def _weight(weights: dict[str, torch.Tensor], node: str) -> NDArray[np.float32]:
    if node.startswith("/lm_head"):
        return weights["model.language_model.embed_tokens.weight"].float().numpy()
    _, _, layer, part, projection, _ = node.split("/")
    part = {"attn": "self_attn", "mlp": "mlp"}[part]
    return weights[f"model.language_model.{layer}.{part}.{projection}.weight"].float().numpy()


def _rounded_product(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [.., in] times weight [out, in], both rounded to 8 bits by the largest magnitude of each row."""
    row_scales = np.abs(rows).max(axis=-1, keepdims=True) / STEPS
    scales = np.abs(weight).max(axis=-1, keepdims=True) / STEPS
    product = np.rint(rows / row_scales) @ np.rint(weight / scales).T
    return np.asarray(product * row_scales * scales.T, np.float32)


def test_rows_that_are_read_together_are_rounded_once(int4_bundle: Bundle) -> None:
    """Q, K and V share their rounded rows, and so do gate and up: four roundings a layer and one for the head."""
    graph = onnx.load(int4_bundle.graph_path("int8"), load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    layers = int4_bundle.text.num_hidden_layers
    assert kinds["QuantizeLinear"] == kinds["Abs"] == kinds["ReduceMax"] == 4 * layers + 1
    assert kinds["MatMulIntegerToFloat"] == 7 * layers + 1


def test_a_token_gives_what_it_gives_alone(int4_bundle: Bundle, given: Input) -> None:
    """Rows of a batch do not touch each other: beside a row a thousand times as large, logits are the same bits."""
    decoder = Decoder(int4_bundle, "int8")
    alone = decoder.run(given.embeds, given.positions)
    loud = np.concatenate([given.embeds, 1000 * given.embeds[:, ::-1]])
    beside = decoder.run(loud, np.repeat(given.positions, 2, axis=1))
    np.testing.assert_array_equal(beside.logits[0], alone.logits[0])
    for name, value in alone.cache.items():
        np.testing.assert_array_equal(beside.cache[name][0], value[0], err_msg=name)


def test_the_cache_passes_from_graph_to_graph(
    int4_bundle: Bundle, fp32_bundle: Bundle, reference: Reference, given: Input
) -> None:
    """A prompt read by one graph is continued by the other, as near to float32 as by one alone; a wrong one is not."""
    prompt = reference.prompt("red")
    more = _input(reference, fp32_bundle, prompt)
    positions = more.positions + given.positions.max() + 1
    int4, int8 = Decoder(int4_bundle, "int4"), Decoder(int4_bundle, "int8")
    exact = Decoder(fp32_bundle, "fp32")
    truth = exact.run(more.embeds, positions, exact.run(given.embeds, given.positions).cache).logits
    by_int4, by_int8 = (graph.run(given.embeds, given.positions).cache for graph in (int4, int8))
    alone = kl_divergence(truth, int4.run(more.embeds, positions, by_int4).logits).item()
    assert kl_divergence(truth, int4.run(more.embeds, positions, by_int8).logits).item() < 1.5 * alone
    assert kl_divergence(truth, int8.run(more.embeds, positions, by_int4).logits).item() < 1.5 * alone
    wrong = {name: value[:, ::-1] for name, value in by_int8.items()}
    assert kl_divergence(truth, int8.run(more.embeds, positions, wrong).logits).item() > 3 * alone


def test_packing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs quantized a few at a time give what the whole matrix gives, and a row of zeros stays one."""
    weight = torch.randn(50, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[7] = 0
    whole = pack_int8(weight)
    monkeypatch.setattr("exporter.quantize._ROWS", 7)
    parts = pack_int8(weight)
    np.testing.assert_array_equal(parts.weight, whole.weight)
    np.testing.assert_array_equal(parts.scales, whole.scales)
    restored = whole.weight.T * whole.scales[:, None]
    assert (np.abs(restored - weight.float().numpy()) <= 0.501 * whole.scales[:, None]).all()
    assert np.abs(whole.weight).max(axis=0).tolist() == [0 if row == 7 else STEPS for row in range(50)]
    assert not restored[7].any()


def test_weights_in_the_graph_are_the_packed_ones(int4_bundle: Bundle, checkpoint: Path) -> None:
    """What is streamed to disk is what packing gives, for the largest matrix and for one of a layer."""
    weights = load_file(checkpoint / "model.safetensors")
    graph = onnx.load(int4_bundle.graph_path("int8")).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node, stem in (
        ("/lm_head/MatMul", "lm_head.MatMul"),
        ("/model/layers.1/mlp/down_proj/MatMul", "model.layers.1.mlp.down_proj.MatMul"),
    ):
        packed = pack_int8(torch.from_numpy(_weight(weights, node)))
        np.testing.assert_array_equal(stored[f"{stem}.weight_int8"], packed.weight)
        np.testing.assert_array_equal(stored[f"{stem}.scales"], packed.scales)
