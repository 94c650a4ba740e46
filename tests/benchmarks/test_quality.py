"""The measure of quality measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from benchmarks import quality
from benchmarks.divergence import Reference, ask
from benchmarks.outliers import Place, add_outliers, plant_outliers, shuffle_channels
from exporter.divergence import Graph, kl_divergence
from serving.bundle import Bundle


def test_divergence_of_known_distributions() -> None:
    """It is Σ p log(p / q), not changed by a constant on the logits, zero for equals, and not symmetric."""
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    exact, other = (np.log(values)[None].astype(np.float32) for values in (p, q))
    assert kl_divergence(exact, other) == pytest.approx([(p * np.log(p / q)).sum()], abs=1e-6)
    assert kl_divergence(exact + 90, other - 90) == pytest.approx(kl_divergence(exact, other), abs=1e-5)
    assert kl_divergence(exact, exact + 3) == pytest.approx([0], abs=1e-6)
    skewed = np.log(np.array([[0.8, 0.1, 0.1]], np.float32))
    assert kl_divergence(exact, skewed)[0] != pytest.approx(kl_divergence(skewed, exact)[0], rel=0.01)


def test_a_graph_led_along_its_own_answer_says_the_same(bundle: Bundle, picture: bytes) -> None:
    """Led along what it answered, the float32 graph gives the very logits, and every prompt and step is counted."""
    asked = ask(bundle, [picture, picture], ["What is it?", "red?"])
    graph = Graph(bundle, "fp32", threads=1)
    tokens, logits = graph.greedy(asked[0], 4)
    np.testing.assert_array_equal(graph.led(asked[0], tokens), logits)
    assert logits.argmax(-1)[:4].tolist() == tokens
    found = Reference(bundle, asked, steps=4, threads=1).compare(graph)
    assert (found.mean, found.agreement, found.positions) == (pytest.approx(0, abs=1e-12), 1.0, 2 * 2 * 5)


def test_the_picture_counts(bundle: Bundle, picture: bytes) -> None:
    """Negative control: with the features zeroed the float32 graph diverges from itself."""
    asked = ask(bundle, [picture], ["What is it?"])
    blind = [type(asked[0])(prompt.prompt, np.zeros_like(prompt.features)) for prompt in asked]
    graph = Graph(bundle, "fp32", threads=1)
    tokens, seen = graph.greedy(asked[0], 2)
    assert kl_divergence(seen, graph.led(blind[0], tokens)).mean() > 0.01


@pytest.mark.parametrize("largest", [8.0, 60.0])
def test_outliers_are_the_same_function(checkpoint: Path, tmp_path: Path, largest: float) -> None:
    """Logits of the checkpoint with outliers are within 1e-4 of the plain one's, though its activations are not."""
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    logits, loudest = [], []
    for source in (checkpoint, add_outliers(checkpoint, tmp_path / "outliers", largest=largest)):
        model = Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
        heard: list[float] = []
        for layer in model.model.language_model.layers:
            for reader in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
                reader.register_forward_pre_hook(lambda _, args, heard=heard: heard.append(float(args[0].abs().max())))
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits)
        loudest.append(np.array(heard))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    assert (loudest[1] > loudest[0]).mean() > 0.9
    assert np.median(loudest[1] / loudest[0]) > largest / 8


def test_another_order_of_channels_is_the_same_function(checkpoint: Path, tmp_path: Path) -> None:
    """Logits differ by float32's rounding alone, though every matrix of a layer has its weights elsewhere."""
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    models = [
        Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
        for source in (checkpoint, shuffle_channels(checkpoint, tmp_path / "shuffled"))
    ]
    with torch.inference_mode():
        logits = [model(input_ids=ids).logits for model in models]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=0)
    for plain, shuffled in zip(
        *(model.model.language_model.layers[1].named_parameters() for model in models), strict=True
    ):
        assert plain[1].dim() < 2 or not torch.equal(plain[1], shuffled[1]), plain[0]


def test_outliers_leave_the_source_and_the_rest_alone(checkpoint: Path, tmp_path: Path) -> None:
    """The source is not written to, files and tensors keep their names, and the same seed draws the same channels."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    first, again, other = (add_outliers(checkpoint, tmp_path / str(i), seed=i // 2) for i in range(3))
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert len(list(first.glob("*.safetensors"))) > 1
    for name, content in before.items():
        written = (first / name).read_bytes()
        assert written == (again / name).read_bytes()
        if name.endswith(".safetensors"):
            assert load_file(first / name).keys() == load_file(checkpoint / name).keys()
        else:
            assert written == content
    shards = [path.name for path in first.glob("*.safetensors")]
    assert any((first / name).read_bytes() != (other / name).read_bytes() for name in shards)


@pytest.mark.parametrize("where", ["down", "residual", "v"])
def test_planted_outliers_are_the_same_function(checkpoint: Path, tmp_path: Path, where: Place) -> None:
    """Logits are the plain checkpoint's, the activations are as much larger as asked, and no column gives them away."""
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    readers = {"down": "mlp.down_proj", "residual": "mlp.gate_proj", "v": "self_attn.o_proj"}
    planted = plant_outliers(checkpoint, tmp_path / "planted", where=where, ratio=100)
    logits, loudest, columns = [], [], []
    for source in (checkpoint, planted):
        model = Qwen3VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
        heard: list[float] = []
        for layer in model.model.language_model.layers:
            reader = layer.get_submodule(readers[where])
            norms = reader.weight.detach().norm(dim=0)
            columns.append(float(norms.max() / norms.median()))
            reader.register_forward_pre_hook(
                lambda _, args, heard=heard: heard.append(float(args[0].flatten(0, 1).norm(dim=0).topk(4).values[-1]))
            )
        with torch.inference_mode():
            logits.append(model(input_ids=ids).logits)
        loudest.append(np.array(heard))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=0)
    assert np.median(loudest[1] / loudest[0]) > 20
    half = len(columns) // 2
    assert max(columns[half:]) < 1.5 * max(columns[:half])


def test_the_command(checkpoint: Path, picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a row for each checkpoint, smoothed or not, and graph: as JSON and as a table."""
    (tmp_path / "noise.png").write_bytes(picture)
    words = [str(checkpoint), "--image", str(tmp_path / "noise.png"), "--steps", "2", "--threads", "1"]
    assert quality.main([*words, "--outliers", "60", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    variants = [("plain", False), ("plain", True), ("outliers", False), ("outliers", True)]
    expected = [(*variant, graph) for variant in variants for graph in ("int4", "int8")]
    assert [(row["checkpoint"], row["smoothed"], row["graph"]) for row in rows] == expected
    assert all(row["divergence"]["positions"] == 3 * 6 for row in rows)
    mean = {key: row["divergence"]["mean"] for key, row in zip(expected, rows, strict=True)}
    assert 0 < mean["plain", False, "int8"] < mean["plain", False, "int4"]
    assert quality.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
