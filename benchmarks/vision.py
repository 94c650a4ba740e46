"""The encoder against plain transformers, in patches per second by size of picture: `python -m benchmarks.vision`.

Transformers computes in float32, ours in float32, in bfloat16 and, if possible, in int8, on the CPU, with the same
weights, in turns; each figure is the median of the rounds. Ours is timed from pixels to features, as in the service;
transformers' only in the model's forward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.checkpoint import SHAPES, VISION
from serving.bundle import Bundle, BundleError
from serving.cores import usable_cores
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.tower import Tower
from vision_service.media import Grid, PreparedMedium
from vision_service.operators import OperatorsError, find_operators

PUBLISHED: dict[str, Any] = {**VISION, "out_hidden_size": SHAPES["4b"].text["hidden_size"]}
"""The encoder of the published 4B; that of the 2B differs only in `out_hidden_size`."""


@dataclass(frozen=True)
class Case:
    """Pictures that are encoded together.

    Attributes:
        images: Number of pictures.
        grid: Rows and columns of patches of each.
    """

    images: int
    grid: tuple[int, int]


CASES = (
    Case(1, (6, 6)),
    Case(7, (6, 6)),
    Case(1, (14, 14)),
    Case(1, (24, 18)),
    Case(1, (32, 32)),
    Case(1, (64, 64)),
)


@dataclass(frozen=True)
class VisionResult:
    """The result of one case.

    Attributes:
        images: Pictures that were encoded together.
        patches: Patches of all of them.
        transformers: Patches per second of plain transformers.
        triptych: Patches per second of the service's encoder in float32.
        bfloat16: Patches per second of the service's encoder in bfloat16.
        int8: Patches per second of the service's encoder in int8; None if it is not supported here.
        ratio: Speed in float32 relative to transformers: the median of the rounds' ratios.
        bfloat16_ratio: Speed in bfloat16 relative to float32, likewise.
        int8_ratio: Speed in int8 relative to float32, likewise.
        difference: Largest difference of a feature between transformers and ours in float32, as a share of the largest
            feature.
    """

    images: int
    patches: int
    transformers: float
    triptych: float
    bfloat16: float
    int8: float | None
    ratio: float
    bfloat16_ratio: float
    int8_ratio: float | None
    difference: float


def run(
    bundle: Bundle, *, repeats: int = 3, cases: Sequence[Case] = CASES, threads: int | None = None
) -> list[VisionResult]:
    """Measure the encoder of a bundle.

    Args:
        bundle: The bundle.
        repeats: Number of rounds.
        cases: The cases.
        threads: Threads of PyTorch; None: all cores that this process may use.

    Raises:
        BundleError: The bundle's encoder cannot be read.
    """
    model = Encoder.load_model(bundle.vision_dir, device=torch.device("cpu"), dtype=torch.float32)
    return compare(model, repeats=repeats, cases=cases, threads=threads)


def compare(
    model: Qwen3VLVisionModel, *, repeats: int = 3, cases: Sequence[Case] = CASES, threads: int | None = None
) -> list[VisionResult]:
    """Measure a model in transformers and in the service's encoder.

    Args:
        model: A model in float32 on the CPU.
        repeats: Number of rounds; before the first, each side runs once for warm-up.
        cases: The cases.
        threads: As in `run`.
    """
    encoders = {torch.float32: Encoder(Tower(copy.deepcopy(model)))}
    rounded = copy.deepcopy(model)
    for parameter in rounded.parameters():  # but not the frequencies of the rotations, which stay in float32
        parameter.data = parameter.data.to(torch.bfloat16)
    encoders[torch.bfloat16] = Encoder(Tower(rounded, find_operators(model.device)))
    with contextlib.suppress(OperatorsError):
        operators = find_operators(model.device, needed=True)
        encoders[torch.int8] = Encoder(Tower(copy.deepcopy(model), operators, int8=True))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or usable_cores())
    try:
        return [_measure(model, encoders, case, repeats) for case in cases]
    finally:
        torch.set_num_threads(before)


def _measure(
    model: Qwen3VLVisionModel, encoders: Mapping[torch.dtype, Encoder], case: Case, repeats: int
) -> VisionResult:
    media = _draw(model, case)
    patches = sum(medium.grid.patches for medium in media)
    pixels = torch.from_numpy(np.concatenate([medium.pixel_values() for medium in media]))
    grids = torch.tensor([medium.grid for medium in media])

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            output = model(pixels, grid_thw=grids)
        return torch.cat([output.pooler_output, *output.deepstack_features], dim=-1)

    sides: dict[torch.dtype | None, Callable[[], object]] = {
        None: plain,
        **{dtype: functools.partial(encoder.encode, media) for dtype, encoder in encoders.items()},
    }
    expected = plain()
    ours = torch.cat(encoders[torch.float32].encode(media))
    for side in sides.values():
        side()
    rates: dict[torch.dtype | None, list[float]] = {name: [] for name in sides}

    def ratio(one: torch.dtype | None, other: torch.dtype | None) -> float:
        return statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True))

    for number in range(repeats):
        # The order alternates, so that a change of the machine's speed within a round favours neither.
        for name in sides if number % 2 == 0 else reversed(sides):
            started = time.perf_counter()
            sides[name]()
            rates[name].append(patches / (time.perf_counter() - started))
    rate = {name: statistics.median(found) for name, found in rates.items()}
    return VisionResult(
        images=case.images,
        patches=patches,
        transformers=rate[None],
        triptych=rate[torch.float32],
        bfloat16=rate[torch.bfloat16],
        int8=rate.get(torch.int8),
        ratio=ratio(torch.float32, None),
        bfloat16_ratio=ratio(torch.bfloat16, torch.float32),
        int8_ratio=ratio(torch.int8, torch.float32) if torch.int8 in rates else None,
        difference=float((ours - expected).abs().max() / expected.abs().max()),
    )


def _draw(model: Qwen3VLVisionModel, case: Case) -> list[PreparedMedium]:
    config: Any = model.config
    rows, columns = case.grid
    shape = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    draw = np.random.default_rng(0)
    levels = np.tile(np.linspace(-1, 1, 256, dtype=np.float32), (config.in_channels, 1))
    return [
        PreparedMedium(
            "image", Grid(1, rows, columns), draw.integers(0, 256, (rows * columns, *shape), np.uint8), levels
        )
        for _ in range(case.images)
    ]


def random_model(**shape: Any) -> Qwen3VLVisionModel:
    """An encoder of random weights, the same each time.

    Args:
        shape: Dimensions, as in `Qwen3VLVisionConfig`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLVisionModel(Qwen3VLVisionConfig(**shape))
    model.requires_grad_(False)
    model.train(False)
    return model


def table(results: Sequence[VisionResult]) -> str:
    """The results as a table."""
    head = (
        f"{'images':>6} {'patches':>8} {'transformers':>13} {'triptych':>9} {'ratio':>6} {'bfloat16':>9} {'ratio':>6} "
        f"{'int8':>9} {'ratio':>6}"
    )
    lines = [f"{head}   patches per second"]
    for one in results:
        int8 = "" if one.int8 is None else f" {one.int8:>9.1f} {one.int8_ratio:>6.2f}"
        lines.append(
            f"{one.images:>6} {one.patches:>8} {one.transformers:>13.1f} {one.triptych:>9.1f} {one.ratio:>6.2f} "
            f"{one.bfloat16:>9.1f} {one.bfloat16_ratio:>6.2f}{int8}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: Arguments after the program's name; None takes the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="benchmarks.vision", description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="the encoder (default: random, the 4B's shape)")
    parser.add_argument("--repeats", type=_positive, default=3, metavar="N", help="rounds (default %(default)s)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="threads (default: all cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    given = {"repeats": options.repeats, "threads": options.threads}
    try:
        results = compare(random_model(**PUBLISHED), **given) if options.bundle is None else _of(options.bundle, given)
    except BundleError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(
        json.dumps({"bench": "vision", "results": [dataclasses.asdict(one) for one in results]})
        if options.json
        else table(results)
    )
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _of(bundle: Path, given: dict[str, Any]) -> list[VisionResult]:
    return run(Bundle.open(bundle), **given)


if __name__ == "__main__":
    sys.exit(main())
