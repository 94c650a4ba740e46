"""Estimates of what encoding takes."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from vision_service.cost import Cost
from vision_service.families.qwen3_vl.cost import encoder_cost
from vision_service.media import Grid

# The encoder of the published 2B and 4B.
CONFIG = Qwen3VLVisionConfig(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, out_hidden_size=2560)


@pytest.fixture(params=[(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
def cost(request: pytest.FixtureRequest) -> Cost:
    """Costs in a type, with our attention or without."""
    dtype, own_attention = request.param
    return encoder_cost(CONFIG, dtype, own_attention=own_attention)


def test_it_counts_the_operations_of_the_linear_layers() -> None:
    """1,024 patches of the published encoder take 0.6 TFLOP in its layers, with little attention beside them."""
    whole = encoder_cost(CONFIG, torch.float32).frame(1024)
    assert 0.6e12 < whole < 0.9e12


def test_attention_is_quadratic_in_a_frame_and_frames_add_up(cost: Cost) -> None:
    """Four frames cost four times one; one frame of as many patches costs more."""
    assert cost.medium(Grid(4, 32, 32)) == pytest.approx(4 * cost.frame(1024))
    assert cost.medium(Grid(1, 64, 64)) > 4.5 * cost.frame(1024)


@pytest.mark.parametrize("patches", [4, 256, 4096, 47_000])
def test_the_largest_frame_is_the_inverse(cost: Cost, patches: int) -> None:
    """What a frame costs affords that frame and no larger one."""
    assert cost.largest_frame(cost.frame(patches) * 1.000001) == patches
    assert cost.largest_frame(0.0) == cost.largest_frame(-1.0) == 0
