"""What docs/onnx-and-pytorch.md claims of the vision encoder is so with the installed transformers and PyTorch."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

PATCHES = 96
_WIDTH = 3 * 2 * 16 * 16


class _Features(torch.nn.Module):
    """The encoder with all its features side by side, as an export would want it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Qwen3VLVisionModel(
            Qwen3VLVisionConfig(
                depth=3,
                hidden_size=32,
                num_heads=2,
                intermediate_size=64,
                out_hidden_size=32,
                num_position_embeddings=64,
                deepstack_visual_indexes=[0, 1],
                initializer_range=0.25,  # with less, what attention and positions add would be lost in rounding
            )
        )
        self.requires_grad_(False)

    def forward(self, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """[patches, pixels of a patch] and [media, 3] to [tokens, width]."""
        output = self.model(pixels, grid_thw=grid)
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)


@pytest.fixture(scope="module")
def encoder() -> _Features:
    """A small random encoder."""
    return _Features()


@pytest.fixture(scope="module")
def traced(encoder: _Features) -> torch.jit.ScriptModule:
    """The same, traced with one picture of 8 x 12 patches."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each of them says that a value becomes a constant
        traced: torch.jit.ScriptModule = torch.jit.trace(encoder, (_pixels(0), torch.tensor([[1, 8, 12]])))  # type: ignore[no-untyped-call]
    return traced


def _pixels(seed: int, patches: int = PATCHES) -> torch.Tensor:
    return torch.randn(patches, _WIDTH, generator=torch.Generator().manual_seed(seed))


def test_a_trace_is_right_for_its_own_grid(encoder: _Features, traced: torch.jit.ScriptModule) -> None:
    """Other pixels of the same grid give the same features."""
    grid = torch.tensor([[1, 8, 12]])
    torch.testing.assert_close(traced(_pixels(1), grid), encoder(_pixels(1), grid))


@pytest.mark.parametrize(
    "grid",
    [[[1, 12, 8]], [[1, 16, 6]], [[1, 8, 6], [1, 8, 6]], [[2, 8, 6]]],
    ids=["turned", "longer", "two pictures", "video"],
)
def test_a_trace_is_silently_wrong_for_another_grid(
    encoder: _Features, traced: torch.jit.ScriptModule, grid: list[list[int]]
) -> None:
    """As many patches in another grid run without complaint and give other features than the encoder."""
    expected = encoder(_pixels(1), torch.tensor(grid))
    error = (traced(_pixels(1), torch.tensor(grid)) - expected).abs().max()
    assert error > 0.05 * expected.abs().max()


def test_a_trace_fails_for_another_number_of_patches(traced: torch.jit.ScriptModule) -> None:
    """More patches than were traced stop in the first layer."""
    with pytest.raises(RuntimeError, match="size of tensor"):
        traced(_pixels(1, 128), torch.tensor([[1, 8, 16]]))


def test_torch_export_refuses_the_encoder(encoder: _Features) -> None:
    """With the grid as an input, export stops where attention is split by it."""
    patches = torch.export.Dim("patches", min=4, max=65536)
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(
            encoder,
            (_pixels(0), torch.tensor([[1, 8, 12]])),
            dynamic_shapes=({0: patches}, None),
            strict=False,
        )
