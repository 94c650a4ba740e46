"""The tower computes what transformers' vision model computes, for every shape that a config can give it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from tests.vision_service.conftest import error
from tests.vision_service.operators.here import needs_operators
from vision_service.families.qwen3_vl.tower import Tower
from vision_service.linear import Linear
from vision_service.media import Grid, WorkCancelledError
from vision_service.operators import Operators

SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "no DeepStack": {"deepstack_visual_indexes": []},
    "levels in any order": {"deepstack_visual_indexes": [2, 0]},
    "odd sizes": {"hidden_size": 72, "num_heads": 3, "intermediate_size": 100, "out_hidden_size": 36},
    "merge of 1": {"spatial_merge_size": 1},
    "merge of 3": {"spatial_merge_size": 3},
    "exact GELU": {"hidden_act": "gelu"},
    "grey": {"in_channels": 1, "patch_size": 8, "temporal_patch_size": 1},
    "other rotation": {"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}},
}


def make_model(**changes: Any) -> Qwen3VLVisionModel:
    """A random vision model, drawn wide enough that everything in it shows in the features."""
    shape: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "out_hidden_size": 48,
        "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 2],
        "initializer_range": 0.25,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen3VLVisionModel(Qwen3VLVisionConfig(**{**shape, **changes}))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which otherwise are ones and zeros
                parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return model.eval().requires_grad_(False)


def draw_pixels(model: Qwen3VLVisionModel, grids: list[Grid]) -> torch.Tensor:
    """Random pixels for media of these grids."""
    count = sum(grid.patches for grid in grids)
    width = model.patch_embed.proj.weight[0].numel()
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def by_transformers(model: Qwen3VLVisionModel, pixels: torch.Tensor, grids: list[Grid]) -> list[torch.Tensor]:
    """The maps as transformers computes them, in the order in which the tower gives them."""
    output = model(pixels, grid_thw=torch.tensor(grids))
    return [output.pooler_output, *output.deepstack_features]


def ignore(share: float) -> None:
    """Told how far the work is, and not interested."""


def never() -> bool:
    """The work is wanted to its end."""
    return False


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_equals_transformers(changes: dict[str, Any]) -> None:
    """Every shape of model gives transformers' maps to 1e-5, for media of several sizes in one pass."""
    model = make_model(**changes)
    merge = model.config.spatial_merge_size
    grids = [Grid(t, h * merge, w * merge) for t, h, w in ((1, 2, 3), (1, 2, 3), (3, 4, 1), (1, 9, 7), (2, 1, 1))]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        got = Tower(model)(pixels, grids, never, ignore)
    assert len(got) == 1 + len(model.config.deepstack_visual_indexes)
    for one, other in zip(got, expected, strict=True):
        assert other.abs().max() > 0.5
        assert error(one, other) <= 1e-5


def test_packed_equals_alone() -> None:
    """Over many draws of sizes and kinds, features packed in one pass are those of each medium alone."""
    model = make_model()
    tower = Tower(copy.deepcopy(model))
    draw = random.Random(11)
    with torch.inference_mode():
        for _ in range(12):
            grids = [
                Grid(draw.choice((1, 1, 2, 5)), 2 * draw.randint(1, 9), 2 * draw.randint(1, 9))
                for _ in range(draw.randint(2, 7))
            ]
            pixels = draw_pixels(model, grids)
            counts = [grid.patches for grid in grids]
            packed = [one.split([count // 4 for count in counts]) for one in tower(pixels, grids, never, ignore)]
            for index, (grid, part) in enumerate(zip(grids, pixels.split(counts), strict=True)):
                alone = by_transformers(model, part, [grid])
                assert all(error(one[index], other) <= 1e-5 for one, other in zip(packed, alone, strict=True))


def test_frames_see_only_themselves() -> None:
    """Changing one frame changes no other's features: that is what lets a video be encoded piece by piece."""
    model = make_model()
    tower = Tower(model)
    pixels = draw_pixels(model, [Grid(3, 4, 4)])
    changed = pixels.clone()
    changed[16:32] += 1
    with torch.inference_mode():
        before, after = (tower(one, [Grid(3, 4, 4)], never, ignore)[0].split(4) for one in (pixels, changed))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert error(after[1], before[1]) > 0.01


def test_more_rows_than_go_through_the_mlp_together() -> None:
    """A picture larger than one run of the feed-forward part is computed right at its seams."""
    model = make_model()
    grids = [Grid(1, 26, 46)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        got = Tower(model)(pixels, grids, never, ignore)
    assert error(got[0], expected[0]) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype: torch.dtype) -> None:
    """In half precision the features are close to float32's."""
    model = make_model()
    grids = [Grid(1, 6, 8), Grid(2, 4, 4)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        (expected, *_) = by_transformers(model, pixels, grids)
        (got, *_) = Tower(model.to(dtype))(pixels.to(dtype), grids, never, ignore)
    assert got.dtype is dtype
    assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99


@needs_operators
@pytest.mark.parametrize("changes", [{}, SHAPES["odd sizes"], {"num_heads": 1}, {"hidden_size": 256, "num_heads": 2}])
def test_our_attention(changes: dict[str, Any]) -> None:
    """With our attention, features in bfloat16 are as close to float32's as with PyTorch's."""
    model = make_model(**{"initializer_range": 0.05, **changes})
    grids = [Grid(1, 6, 8), Grid(2, 4, 4), Grid(1, 18, 12)]
    pixels = draw_pixels(model, grids)
    half = [copy.deepcopy(model).to(torch.bfloat16) for _ in range(2)]
    with torch.inference_mode():
        (expected, *_) = by_transformers(model, pixels, grids)
        theirs, ours = Tower(half[0]), Tower(half[1], Operators())
        assert (theirs.own_attention, ours.own_attention) == (False, True)
        features = [tower(pixels.bfloat16(), grids, never, ignore)[0].float() for tower in (theirs, ours)]
    assert error(features[1], expected) <= 1.5 * error(features[0], expected)
    assert torch.nn.functional.cosine_similarity(features[1], expected, dim=-1).min() > 0.99


@needs_operators
def test_what_our_attention_does_not_compute() -> None:
    """In other types and for other widths of a head attention stays PyTorch's."""
    model = make_model()
    assert not Tower(copy.deepcopy(model), Operators()).own_attention
    assert not Tower(copy.deepcopy(model).to(torch.float16), Operators()).own_attention
    wide = make_model(hidden_size=264, num_heads=2).to(torch.bfloat16)
    assert not Tower(wide, Operators()).own_attention


def test_packed_linear_equals_plain() -> None:
    """Packed weights give what plain ones give, alone and with what is fused to them, for rows of any number."""
    generator = torch.Generator().manual_seed(5)
    weight, bias = torch.randn(40, 24, generator=generator), torch.randn(40, generator=generator)
    packed, plain = Linear(weight, bias), Linear(weight.double(), bias.double())
    assert packed._packed
    assert not plain._packed
    with torch.inference_mode():
        for rows in (1, 2, 7, 64, 300):
            x, other = torch.randn(rows, 24, generator=generator), torch.randn(rows, 40, generator=generator)
            for approximate in ("none", "tanh"):
                assert error(packed.gelu(x, approximate), plain.gelu(x.double(), approximate)) <= 1e-6  # type: ignore[arg-type]
            assert error(packed(x), plain(x.double())) <= 1e-6
            assert error(packed.add(x, other), plain.add(x.double(), other.double())) <= 1e-6


def test_cancelled_between_layers() -> None:
    """The work ends at the layer before which it is told to."""
    model = make_model()
    tower = Tower(model)
    answers = iter((False, False, True))
    with torch.inference_mode(), pytest.raises(WorkCancelledError):
        tower(draw_pixels(model, [Grid(1, 2, 2)]), [Grid(1, 2, 2)], lambda: next(answers), ignore)
    assert next(answers, None) is None


def test_unknown_activation() -> None:
    """An activation that is not computed here is refused rather than computed wrongly."""
    with pytest.raises(ValueError, match="hidden_act is relu"):
        Tower(make_model(hidden_act="relu"))
