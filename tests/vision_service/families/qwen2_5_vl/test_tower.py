"""The tower computes what transformers' vision model computes, for every shape that a config can give it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from tests.vision_service.conftest import error
from tests.vision_service.operators.here import needs_operators
from vision_service.families.qwen2_5_vl.tower import Tower
from vision_service.media import Grid, WorkCancelledError
from vision_service.operators import Operators

SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "windows alone": {"fullatt_block_indexes": []},
    "whole frames alone": {"fullatt_block_indexes": [0, 1, 2]},
    "in any order, and beyond the depth": {"fullatt_block_indexes": [2, 0, 31]},
    "windows of one token": {"window_size": 28},
    "windows of no whole number of tokens": {"window_size": 100},
    "windows larger than frames": {"window_size": 1_120},
    "odd sizes": {"hidden_size": 72, "num_heads": 3, "intermediate_size": 101, "out_hidden_size": 36},
    "merge of 1": {"spatial_merge_size": 1, "window_size": 56},
    "merge of 3": {"spatial_merge_size": 3},
    "other activation": {"hidden_act": "gelu_pytorch_tanh"},
    "grey": {"in_channels": 1, "patch_size": 8, "temporal_patch_size": 1, "window_size": 32},
    "other rotation": {"rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}},
}


def make_model(**changes: Any) -> Qwen2_5_VisionTransformerPretrainedModel:
    """A random vision model, drawn wide enough that everything in it shows in the features."""
    shape: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 100,
        "out_hidden_size": 48,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.25,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**{**shape, **changes}))
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which otherwise are ones and zeros
                parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return model.eval().requires_grad_(False)


def draw_pixels(model: Any, grids: list[Grid]) -> torch.Tensor:
    """Random pixels for media of these grids."""
    count = sum(grid.patches for grid in grids)
    width = model.patch_embed.proj.weight[0].numel()
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def by_transformers(model: Any, pixels: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """The features as transformers computes them."""
    features: torch.Tensor = model(pixels, grid_thw=torch.tensor(grids)).pooler_output
    return features


def ignore(share: float) -> None:
    """Told how far the work is, and not interested."""


def never() -> bool:
    """The work is wanted to its end."""
    return False


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
def test_equals_transformers(changes: dict[str, Any]) -> None:
    """Every shape of model gives transformers' features to 1e-5, for media of several sizes in one pass."""
    model = make_model(**changes)
    merge = model.config.spatial_merge_size
    grids = [Grid(t, h * merge, w * merge) for t, h, w in ((1, 2, 3), (1, 2, 3), (3, 4, 1), (1, 9, 7), (2, 1, 1))]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        (got,) = Tower(model)(pixels, grids, never, ignore)
    assert expected.abs().max() > 0.5
    assert error(got, expected) <= 1e-5


@pytest.mark.parametrize("changes", [{"fullatt_block_indexes": [0, 1, 2]}, {"window_size": 84}])
def test_other_windows_give_other_features(changes: dict[str, Any]) -> None:
    """Negative control: without windows, and with wider ones, the same weights do not pass the check."""
    model, other = make_model(), make_model(**changes)
    other.load_state_dict(model.state_dict())
    grids = [Grid(1, 18, 14)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        (got,) = Tower(other)(pixels, grids, never, ignore)
    assert error(got, expected) > 100 * 1e-5


def test_packed_equals_alone() -> None:
    """Features of media that are packed in one pass are those of each medium, and of each frame, alone."""
    model = make_model()
    tower = Tower(copy.deepcopy(model))
    grids = [Grid(1, 6, 10), Grid(3, 8, 6), Grid(1, 2, 2)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        (packed,) = tower(pixels, grids, never, ignore)
        frames = [Grid(1, grid.h, grid.w) for grid in grids for _ in range(grid.t)]
        parts = pixels.split([frame.patches for frame in frames])
        alone = [by_transformers(model, part, [frame]) for part, frame in zip(parts, frames, strict=True)]
    assert error(packed, torch.cat(alone)) <= 1e-5


def test_more_rows_than_go_through_the_mlp_together() -> None:
    """A picture larger than one run of the feed-forward part is computed right at its seams."""
    model = make_model()
    grids = [Grid(1, 26, 46)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        (got,) = Tower(model)(pixels, grids, never, ignore)
    assert error(got, expected) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(dtype: torch.dtype) -> None:
    """In half precision the features are close to float32's."""
    model = make_model(initializer_range=0.1)
    grids = [Grid(1, 6, 8), Grid(2, 4, 4)]
    pixels = draw_pixels(model, grids)
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        (got,) = Tower(model.to(dtype))(pixels.to(dtype), grids, never, ignore)
    assert got.dtype is dtype
    assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99


@needs_operators
@pytest.mark.parametrize("changes", [{}, {"hidden_size": 160, "num_heads": 2}, {"intermediate_size": 101}])
def test_our_operators(changes: dict[str, Any]) -> None:
    """With our attention in bfloat16, and with layers in 8 bits, features are close to float32's."""
    model = make_model(**{"initializer_range": 0.05, **changes})
    grids = [Grid(1, 6, 8), Grid(2, 4, 4), Grid(1, 18, 12)]
    pixels = draw_pixels(model, grids)
    half = [copy.deepcopy(model).to(torch.bfloat16) for _ in range(2)]
    with torch.inference_mode():
        expected = by_transformers(model, pixels, grids)
        towers = [Tower(half[0], Operators()), Tower(half[1], Operators(), int8=True)]
        assert all(tower.own_attention for tower in towers)
        for tower in towers:
            (features,) = tower(pixels.bfloat16(), grids, never, ignore)
            assert torch.nn.functional.cosine_similarity(features.float(), expected, dim=-1).min() > 0.99


def test_cancelled_between_layers() -> None:
    """The work ends at the layer before which it is told to."""
    model = make_model()
    answers = iter((False, False, True))
    with torch.inference_mode(), pytest.raises(WorkCancelledError):
        Tower(model)(draw_pixels(model, [Grid(1, 2, 2)]), [Grid(1, 2, 2)], lambda: next(answers), ignore)
    assert next(answers, None) is None


def test_unknown_activation() -> None:
    """An activation that is not known is refused in words."""
    model = make_model()
    model.config.hidden_act = "no such"
    with pytest.raises(ValueError, match="hidden_act is no such"):
        Tower(model)
