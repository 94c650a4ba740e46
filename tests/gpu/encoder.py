"""The encoder on a device against the same on the CPU in float32.

Imports nothing but PyTorch, transformers and what comes with it, and the modules of ours that need no more.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from safetensors.torch import save_file
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks import checkpoint
from tests.gpu.report import Report, say
from vision_service.dtype import choose_dtype, multiplies_bfloat16
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.media import Grid, PreparedMedium

CPU, PUBLISHED = torch.device("cpu"), checkpoint.SHAPES["4b"]

SHAPES: dict[str, dict[str, Any]] = {
    "4b": {**PUBLISHED.vision, "out_hidden_size": PUBLISHED.text["hidden_size"]},
    # To try the script.
    "small": {
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 4,
        "intermediate_size": 128,
        "deepstack_visual_indexes": [0, 1, 2],
        "num_position_embeddings": 64,
        "out_hidden_size": 64,
        "initializer_range": 0.25,
    },
}
"""Of the published 4B, and a small one; weights are random."""


class Limit(NamedTuple):
    """How close features must be.

    Attributes:
        error: Greatest difference, as a share of the greatest feature.
        cosine: Least cosine of a row.
    """

    error: float
    cosine: float


LIMITS = {
    torch.float32: Limit(1e-4, 0.999999),
    torch.bfloat16: Limit(5e-2, 0.999),
    torch.float16: Limit(1e-2, 0.9999),
}

CASES = {
    "one token": [Grid(1, 2, 2)],
    "a picture of 196 patches": [Grid(1, 14, 14)],
    "a tall picture of 432 patches": [Grid(1, 36, 12)],
    "a picture of 1,024 patches": [Grid(1, 32, 32)],
    "four pictures and a video in one forward": [
        Grid(1, 6, 8),
        Grid(1, 14, 14),
        Grid(3, 8, 6),
        Grid(1, 2, 2),
        Grid(1, 6, 8),
    ],
}


def check_encoder(device: torch.device, shape: str, sizes: Sequence[int], folder: Path, report: Report) -> None:
    """Compare features and measure patches a second.

    Args:
        device: Where.
        shape: Of the encoder; one of `SHAPES`.
        sizes: Sides of the pictures whose speed is measured, in patches.
        folder: An empty directory for the weights.
        report: Told of each check.
    """
    write_encoder(SHAPES[shape], folder)
    chosen, reason = choose_dtype("auto", device, folder)
    expected = torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    report.check(f"`auto` computes in {_name(chosen)}", chosen is expected, reason)
    exact = Encoder.load(folder, device=CPU, dtype=torch.float32)
    media = {name: [draw(exact, grid, seed) for seed, grid in enumerate(grids)] for name, grids in CASES.items()}
    references = {name: exact.encode(drawn) for name, drawn in media.items()}
    for dtype, limit in LIMITS.items():
        encoder = Encoder.load(folder, device=device, dtype=dtype)
        report.check(
            f"{_name(dtype)}: it is on the device and in the type",
            (encoder.device.type, encoder.dtype) == (device.type, dtype),
            str(encoder.device),
        )
        for name, drawn in media.items():
            close, detail = _compare(encoder.encode(drawn), references[name], limit)
            report.check(f"{_name(dtype)}: {name}, features are the CPU's", close, detail)
        _check_control(encoder, exact, limit, report)
        _check_packing(encoder, media["four pictures and a video in one forward"], limit, report)
        _measure(encoder, sizes)
        del encoder


def write_encoder(shape: dict[str, Any], folder: Path) -> None:
    """An encoder of random weights as a bundle has it, in bfloat16."""
    config = Qwen3VLVisionConfig(**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLVisionModel(config)
    weights = {name: one.to(torch.bfloat16).contiguous() for name, one in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({"vision_config": config.to_dict()}, default=str)
    (folder / "config.json").write_text(text, encoding="utf-8")


def draw(encoder: Encoder, grid: Grid, seed: int) -> PreparedMedium:
    """A picture or a video of noise."""
    blank = encoder.blank()
    pixels = np.random.default_rng(seed).integers(0, 256, (grid.patches, *blank.patches.shape[1:]), np.uint8)
    levels = np.tile(np.linspace(-1, 1, 256, dtype=np.float32), (len(blank.levels), 1))
    return PreparedMedium("image" if grid.t == 1 else "video", grid, pixels, levels)


def _check_control(encoder: Encoder, exact: Encoder, limit: Limit, report: Report) -> None:
    """Features of another picture, and maps in another order, must not pass for the right ones."""
    one, other = (draw(exact, Grid(1, 14, 14), seed) for seed in (0, 1))
    expected = exact.encode([one])
    close, detail = _compare(encoder.encode([other]), expected, limit)
    name = _name(encoder.dtype)
    report.check(f"{name}: another picture's features are not taken for these (negative control)", not close, detail)
    (got,) = encoder.encode([one])
    close, detail = _compare([got.roll(int(exact.feature_width / 4), dims=1)], expected, limit)
    report.check(f"{name}: nor are DeepStack's levels in another order (negative control)", not close, detail)


def _check_packing(encoder: Encoder, media: Sequence[PreparedMedium], limit: Limit, report: Report) -> None:
    alone = [encoder.encode([medium])[0] for medium in media]
    close, detail = _compare(encoder.encode(media), alone, limit)
    report.check(f"{_name(encoder.dtype)}: packed with others, media have the features they have alone", close, detail)


def _measure(encoder: Encoder, sizes: Sequence[int]) -> None:
    """Print patches a second."""
    for side in sizes:
        medium = draw(encoder, Grid(1, side, side), 0)
        encoder.encode([medium])
        times = []
        for _ in range(5):
            started = time.perf_counter()
            encoder.encode([medium])  # features come to the CPU: nothing is still under way when it returns
            times.append(time.perf_counter() - started)
        rate = medium.grid.patches / statistics.median(times)
        memory = ""
        if encoder.device.type == "cuda":
            memory = f", {torch.cuda.max_memory_allocated(encoder.device) / 2**30:.1f} GiB at the peak so far"
        say(f"      {_name(encoder.dtype)}: {rate:,.0f} patches a second at {medium.grid.patches:,} patches{memory}")


def _compare(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], limit: Limit) -> tuple[bool, str]:
    """Whether features are as close as the limit says; and what was seen."""
    one, other = torch.cat(list(got)).double(), torch.cat(list(expected)).double()
    error = float((one - other).abs().max() / other.abs().max())
    cosine = float(F.cosine_similarity(one, other, dim=-1).min())
    # A comparison with NaN is false, so that features that are not finite fail.
    return error <= limit.error and cosine >= limit.cosine, f"error {error:.1e} of the greatest, cosine {cosine:.6f}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
