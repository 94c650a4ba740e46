"""The pass over the layers computes what transformers does, and what it chooses is better than to choose nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

import exporter
from benchmarks.divergence import Reference, ask
from benchmarks.outliers import plant_outliers
from benchmarks.quality import PICTURES
from exporter.calibrated import Plan, Tokens
from exporter.calibration import built_in, encode
from exporter.choice import BlockRounding, OutputRounding, Reader, Rounding, choose, error, ways
from exporter.divergence import Graph
from exporter.families.qwen3_vl.variant import VARIANT
from exporter.families.shared import calibration
from exporter.families.shared.calibration import calibrate
from exporter.families.shared.checkpoint import Checkpoint
from exporter.families.shared.layers import read_layer, read_norm
from exporter.progress import Progress
from serving.bundle import Bundle
from triptych.bundles import demo_checkpoint

QUIET = Progress(enabled=False)
KINDS: Mapping[str, str] = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj"}


@pytest.fixture(scope="module")
def tokens(int4_bundle: Bundle) -> Sequence[Tokens]:
    """A picture and a text of the package."""
    data = built_in()
    return encode(int4_bundle, type(data)("some", data.examples[:2]), progress=QUIET)


def _roundings() -> Any:
    return {"int4": lambda kind, layer: BlockRounding(4, 32, True), "int8": lambda kind, layer: OutputRounding()}


def _outlier_rows(ratio: float) -> torch.Tensor:
    rows = torch.randn(200, 128, generator=torch.Generator().manual_seed(1))
    rows[:, [3, 70]] *= ratio
    return rows


def _weight() -> torch.Tensor:
    return torch.randn(64, 128, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_states_are_those_of_transformers(checkpoint: Path, tokens: Sequence[Tokens]) -> None:
    """Positions, features, DeepStack and masks included: the last states are transformers', and so are mean squares."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    text = model.model.language_model
    squares: dict[tuple[int, str], list[torch.Tensor]] = {}

    def keep(key: tuple[int, str]) -> Any:
        return lambda _, given: squares.setdefault(key, []).append(given[0][0].square())

    for index, layer in enumerate(text.layers):
        layer.self_attn.q_proj.register_forward_pre_hook(keep((index, "qkv")))
        layer.mlp.up_proj.register_forward_pre_hook(keep((index, "gate_up")))
    opened = Checkpoint.open(checkpoint, VARIANT)
    stream = calibration._Stream(opened, tokens)
    found = [stream.through(read_layer(opened, index).float(), index) for index in range(opened.text.num_hidden_layers)]
    ends = [_transformers(text, opened, example) for example in tokens]
    for example, state, end in zip(tokens, stream._states, ends, strict=True):
        assert len(example.ids) > 20
        assert torch.allclose(read_norm(opened).float()(state), end, atol=1e-5)
    for (index, name), of_examples in squares.items():
        expected = torch.cat(of_examples).mean(0).sqrt()
        assert torch.allclose(found[index][name].importance, expected, rtol=1e-4)
    # Negative control: without DeepStack the states are others.
    shown = tokens[0]
    assert shown.is_media.any()
    bare = Tokens(shown.ids, shown.positions, shown.is_media, shown.features.copy())
    bare.features[:, opened.text.hidden_size :] = 0
    assert not torch.allclose(_transformers(text, opened, bare), ends[0], atol=1e-2)


def _transformers(text: Any, opened: Checkpoint, example: Tokens) -> torch.Tensor:
    hidden, features = opened.text.hidden_size, torch.from_numpy(example.features)
    mask = torch.from_numpy(example.is_media)
    embedded = text.embed_tokens(torch.from_numpy(example.ids))[None].clone()
    embedded[0, mask] = features[:, :hidden]
    shown: dict[str, Any] = {}
    if mask.any():
        levels = [features[:, start : start + hidden] for start in range(hidden, features.shape[1], hidden)]
        shown = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": levels}
    positions = torch.from_numpy(example.positions)[:, None]
    return torch.as_tensor(text(inputs_embeds=embedded, position_ids=positions, **shown).last_hidden_state)


@pytest.mark.parametrize("rounding", [BlockRounding(4, 32, True), BlockRounding(8, 32, True), OutputRounding()])
def test_outliers_are_smoothed_and_nothing_else(rounding: Rounding) -> None:
    """With outliers that the weights do not show a way is chosen that is better; without, none is."""
    for ratio in (1.0, 300.0):
        rows, readers = _outlier_rows(ratio), [Reader(_weight(), rounding)]
        importance = rows.square().mean(0).sqrt()
        tried = [torch.ones(128), *ways(rows.abs().amax(0), _weight().abs().amax(0))]
        assert all((torch.log2(way) % 1 == 0).all() for way in tried)
        errors = [error(rows, importance, readers, way) for way in tried]
        chosen = choose(errors)
        assert errors[chosen] <= errors[0]
        if ratio == 1:
            assert chosen == 0
        elif not isinstance(rounding, BlockRounding) or rounding.bits == 8:
            assert errors[chosen] < 0.2 * errors[0]


def test_importance_of_other_channels_is_worse() -> None:
    """Negative control: weighted by the mean squares of channels in another order, 4-bit scales err more."""
    rows, readers = _outlier_rows(100.0), [Reader(_weight(), BlockRounding(4, 32, False))]
    importance, nothing = rows.square().mean(0).sqrt(), torch.ones(128)
    weighted = error(rows, importance, readers, nothing)
    plain = error(rows, torch.ones(128), readers, nothing)
    shuffled = error(rows, importance.roll(17), readers, nothing)
    assert weighted < 0.5 * plain
    assert shuffled > plain


def test_graphs_share_the_factors_of_v(checkpoint: Path, tokens: Sequence[Tokens], tmp_path: Path) -> None:
    """The cache holds V for both graphs. Without smoothing every factor is 1, and importances are there."""
    planted = Checkpoint.open(plant_outliers(checkpoint, tmp_path / "v", where="v", ratio=300), VARIANT)
    plan = calibrate(planted, tokens, _roundings(), progress=QUIET)
    of_v = [site.factors for (_, name), site in plan.items() if name == "o"]
    assert all(torch.equal(factors["int4"], factors["int8"]) for factors in of_v)
    assert any((factors["int8"] != 1).any() for factors in of_v)
    plain = calibrate(planted, tokens, _roundings(), smooth=False, progress=QUIET)
    assert _factors(plain) == {1.0}
    assert all(
        torch.equal(plain[key].importance, site.importance) and (site.importance > 0).any()
        for key, site in plan.items()
    )


def _factors(plan: Plan) -> set[float]:
    return {value for site in plan.values() for factors in site.factors.values() for value in factors.tolist()}


@pytest.mark.timeout(300)
def test_planted_outliers_cost_little_on_a_trained_model(tmp_path: Path) -> None:
    """On the demo model with activations 300 times the others', calibrated graphs are near and others are not."""
    planted = plant_outliers(demo_checkpoint(), tmp_path / "planted", where="v", ratio=300)
    exact = exporter.export(planted, tmp_path / "fp32", precision="fp32")
    pictures = [path.read_bytes() for path in sorted(PICTURES.glob("*.png"))[:2]]
    reference = Reference(exact, ask(exact, pictures, ["What is in the picture?"]), steps=8, threads=1)
    found = {}
    for name, calibrated in (("plain", False), ("calibrated", True)):
        bundle = exporter.export(planted, tmp_path / name, recipe="balanced", calibrate=calibrated)
        for graph in bundle.decoder.graphs:
            found[name, graph] = reference.compare(Graph(bundle, graph, threads=1)).mean
    assert np.isfinite(list(found.values())).all()
    assert found["calibrated", "int4"] < 0.2 * found["plain", "int4"]
    assert found["calibrated", "int8"] < 0.2 * found["plain", "int8"]
