"""Smoothing changes no bit of the function, takes outliers out of it, and leaves ordinary weights alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

import exporter
from benchmarks.divergence import Divergence, Reference, ask
from benchmarks.outliers import add_outliers
from benchmarks.quality import PICTURES, QUESTIONS
from exporter.divergence import Graph
from exporter.families.shared.smoothing import (
    column_factors,
    divide_columns,
    scale_outputs,
    smooth_keys,
    smooth_layer,
)
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint
from triptych.bundles import demo_checkpoint

LARGEST = 60.0


def _logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=ids).logits)


def _load(checkpoint: Path, dtype: torch.dtype = torch.float32) -> Any:
    return Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype).eval()


@pytest.mark.parametrize("bias", [False, True])
def test_the_function_is_the_same_bit_for_bit(tmp_path: Path, bias: bool) -> None:
    """With outliers everywhere, smoothed layers give exactly the logits of the layers as they were."""
    shape: dict[str, Any] = {"heads": 6, "kv_heads": 2, "attention_bias": bias}
    source = make_checkpoint(tmp_path / "plain", **shape)
    model = _load(add_outliers(source, tmp_path / "outliers", largest=LARGEST))
    before = _logits(model)
    layers = model.model.language_model.layers
    weights = [parameter.clone() for parameter in layers.parameters()]
    for layer in layers:
        smooth_layer(layer)
    changed = [not torch.equal(old, new) for old, new in zip(weights, layers.parameters(), strict=True)]
    # Norms of queries and keys, and biases of queries, keys and the output, have no column to pass a factor to.
    assert sum(changed) == len(layers) * (10 if bias else 9)
    assert torch.equal(_logits(model), before)


def test_outliers_of_keys_go_to_the_queries(tmp_path: Path) -> None:
    """The key norm's weights are even then, both channels of a pair alike, and the function is the same bit for bit."""
    model = _load(make_checkpoint(tmp_path / "plain"))
    layers = model.model.language_model.layers
    with torch.no_grad():
        for layer in layers:
            for channel in (3, 19):
                layer.self_attn.k_norm.weight[channel] = 100
    before = _logits(model)
    for layer in layers:
        smooth_keys(layer)
        keys, queries = layer.self_attn.k_norm.weight, layer.self_attn.q_norm.weight
        assert 0.5 < keys.abs().max() / keys.abs().median() < 2
        assert queries[3] / queries.median() > 50
    assert torch.equal(_logits(model), before)
    # Negative control: half of a pair alone changes the function.
    with torch.no_grad():
        layers[1].self_attn.k_norm.weight[3] /= 2
        layers[1].self_attn.q_norm.weight[3] *= 2
    assert (_logits(model) - before).abs().max() > 1e-3


def test_a_wrong_factor_is_noticed(tmp_path: Path) -> None:
    """Negative control: divided by other factors than were multiplied, the function is another."""
    model = _load(make_checkpoint(tmp_path / "plain"))
    before = _logits(model)
    mlp = model.model.language_model.layers[1].mlp
    factors = torch.ones(mlp.down_proj.in_features)
    factors[3] = 8
    scale_outputs(mlp.up_proj, factors)
    divide_columns(mlp.down_proj, factors)
    assert torch.equal(_logits(model), before)
    scale_outputs(mlp.up_proj, factors)
    divide_columns(mlp.down_proj, factors.roll(1))
    assert (_logits(model) - before).abs().max() > 1e-3


def test_ordinary_weights_are_left_alone(tmp_path: Path) -> None:
    """Where no channel is far from the others, every tensor stays as it is."""
    layers = _load(make_checkpoint(tmp_path / "plain")).model.language_model.layers
    weights = [parameter.clone() for parameter in layers.parameters()]
    for layer in layers:
        smooth_layer(layer)
    assert all(torch.equal(old, new) for old, new in zip(weights, layers.parameters(), strict=True))


def test_factors() -> None:
    """They are powers of two near the outlier's factor, one within a factor of four, and bounded."""
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    by = torch.ones(64)
    by[:6] = torch.tensor([1 / 60, 1 / 5, 1 / 3, 3, 60, 0])
    factors = column_factors([weight[:100] * by, weight[100:] * by])
    assert factors[:6].tolist() == [1 / 64, 1 / 4, 1, 1, 64, 2**-10]
    assert (factors[6:] == 1).all()
    assert torch.equal(column_factors([weight * by]), factors)
    assert torch.equal(column_factors([torch.zeros(8, 4)]), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_types_lose_nothing(dtype: torch.dtype) -> None:
    """A factor and its inverse give the stored weight back, also at the end of float16's range."""
    linear = torch.nn.Linear(4, 4, bias=False).to(dtype)
    linear.weight.data = torch.tensor([[1.1, 1e-4, 6e-5, 3e4]]).repeat(4, 1).to(dtype)
    before = linear.weight.double()
    factors = torch.full((4,), 2.0**10)
    divide_columns(linear, factors)
    divide_columns(linear, 1 / factors)
    assert torch.equal(linear.weight.double(), before)


def test_graphs_of_outliers_are_those_without(checkpoint: Path, tmp_path: Path) -> None:
    """Every layer is smoothed as it is streamed: outliers by powers of two leave no trace in either graph."""
    changed = add_outliers(checkpoint, tmp_path / "outliers", largest=64, channels=2)
    bundles = [exporter.export(source, tmp_path / f"{source.name}-bundle") for source in (checkpoint, changed)]
    rough = exporter.export(changed, tmp_path / "rough", smooth=False)
    assert [bundle.decoder.smoothed for bundle in (*bundles, rough)] == [True, True, False]
    for graph in ("int4", "int8"):
        name = f"decoder/{graph}/model.onnx.data"
        digests = [bundle.files[name].sha256 for bundle in (*bundles, rough)]
        assert digests[0] == digests[1] != digests[2]


def test_the_head_is_smoothed_with_the_final_norm(tmp_path: Path) -> None:
    """Outliers of the final norm leave no trace either, where the head is not the embedding table."""
    source = make_checkpoint(tmp_path / "plain", tie=False)
    changed = make_checkpoint(tmp_path / "changed", tie=False)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.language_model.norm.weight"][5] *= 32
    tensors["lm_head.weight"][:, 5] /= 32
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    bundles = [exporter.export(folder, tmp_path / f"{folder.name}-bundle") for folder in (source, changed)]
    for graph in ("int4", "int8"):
        name = f"decoder/{graph}/model.onnx.data"
        assert bundles[0].files[name] == bundles[1].files[name]


def test_fp32_is_not_touched(checkpoint: Path, tmp_path: Path) -> None:
    """There is nothing to round at fp32, so the weights are exported as they are."""
    changed = add_outliers(checkpoint, tmp_path / "outliers", largest=LARGEST)
    bundles = [exporter.export(changed, tmp_path / str(on), precision="fp32", smooth=on) for on in (True, False)]
    assert not bundles[0].decoder.smoothed
    name = "decoder/fp32/model.onnx.data"
    assert bundles[0].files[name] == bundles[1].files[name]


@pytest.mark.timeout(300)
def test_outliers_cost_at_most_twice_on_a_trained_model(tmp_path: Path) -> None:
    """On the demo model, INT4 and INT8 of the checkpoint with outliers are within twice the plain one's divergence."""
    plain = demo_checkpoint()
    changed = add_outliers(plain, tmp_path / "outliers", largest=LARGEST)
    exact = exporter.export(plain, tmp_path / "fp32", precision="fp32")
    pictures = [path.read_bytes() for path in sorted(PICTURES.glob("*.png"))]
    asked = ask(exact, pictures, QUESTIONS)  # of few of them INT8's divergence is a millionth, and chance
    reference = Reference(exact, asked, steps=12, threads=1)

    def compared(bundle: Bundle) -> dict[str, Divergence]:
        # 8-bit keys and values would move INT8's divergence by as much as is compared here.
        graphs = {name: Graph(bundle, name, threads=1, kv_dtype="float16") for name in bundle.decoder.graphs}
        return {name: reference.compare(graph) for name, graph in graphs.items()}

    usual = compared(exporter.export(plain, tmp_path / "usual", smooth=False))
    mended = compared(exporter.export(changed, tmp_path / "mended"))
    rough = compared(exporter.export(changed, tmp_path / "rough", smooth=False))
    for graph in ("int4", "int8"):
        assert mended[graph].mean <= 2 * usual[graph].mean, graph
        assert rough[graph].mean > 2 * usual[graph].mean, "the outliers do no harm, so this test shows nothing"
    assert np.isfinite([found.largest for found in (*usual.values(), *mended.values())]).all()
