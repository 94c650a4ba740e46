"""TTFT of a question about a photo, by its size and its budget: `python -m benchmarks.photo`.

The whole system is started on a bundle with its default settings, and each question is about a new picture.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image as Pillow

from benchmarks.machine import Machine
from benchmarks.report import Report, table_of
from serving.bundle import Bundle
from triptych import launcher
from triptych.bundles import demo_bundle
from triptych.client import Client
from triptych.media import Image
from triptych.messages import user

_QUESTION = "What is in the picture?"

Size = tuple[int, int]


@dataclass(frozen=True)
class PhotoPlan:
    """The questions.

    Attributes:
        photos: Width and height of each picture, and the largest area after resizing, in pixels; None: the default.
        repeats: Number of questions about each size.
        seed: Seed of the pictures.
    """

    photos: tuple[tuple[Size, int | None], ...]
    repeats: int = 3
    seed: int = 0


@dataclass(frozen=True)
class FirstToken:
    """One row: medians, in seconds."""

    given: str
    max_pixels: str
    used: str
    tokens: int
    encoding: float
    prefill: float
    first_token: float


PHOTOS: tuple[tuple[Size, int | None], ...] = (
    ((256, 256), None),
    ((512, 512), None),
    ((1024, 1024), None),
    ((4000, 3000), 1 << 16),
    ((4000, 3000), 1 << 18),
    ((4000, 3000), None),
    ((4000, 3000), 1 << 21),
)


class Photos:
    """Generated photos, all different: enlarged noise, as JPEG.

    Args:
        seed: The same seed gives the same photos.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def make(self, size: Size) -> bytes:
        """A JPEG file of this width and height."""
        width, height = size
        noise = self._random.integers(0, 256, (max(1, height // 32), max(1, width // 32), 3), np.uint8)
        out = io.BytesIO()
        Pillow.fromarray(noise).resize(size, Pillow.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        return out.getvalue()


def measure(client: Client, plan: PhotoPlan) -> Iterator[FirstToken]:
    """Measure an idle system."""
    photos = Photos(plan.seed)
    client.answer([user(Image(photos.make((64, 64))), _QUESTION)], max_tokens=1)  # warm-up
    # In turns, so that other load on the machine affects all of them alike.
    rounds = [
        [
            client.answer([user(Image(photos.make(size), max_pixels=bound), _QUESTION)], max_tokens=1, timeout=3600)
            for size, bound in plan.photos
        ]
        for _ in range(plan.repeats)
    ]
    for (size, max_pixels), *answers in zip(plan.photos, *rounds, strict=True):
        (layout,) = answers[0].media
        timings = [answer.timings for answer in answers]
        yield FirstToken(
            given="{} x {}".format(*size),
            max_pixels="default" if max_pixels is None else str(max_pixels),
            used="{} x {}".format(*layout.size_used),
            tokens=layout.tokens,
            encoding=median(one.vision_seconds for one in timings),
            prefill=median(one.prefill_seconds for one in timings),
            first_token=median(one.time_to_first_token_seconds for one in timings),
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photo", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, help="the model (default: the demo model)")
    parser.add_argument("--repeats", type=int, default=3, help="number of questions about each size")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()

    machine = Machine.here()  # before the benchmark itself causes load
    bundle = Bundle.open(options.bundle or demo_bundle())
    plan = PhotoPlan(PHOTOS, options.repeats)
    results: list[FirstToken] = []

    def ask(address: str) -> None:
        with Client(address) as client:
            results.extend(measure(client, plan))

    services = launcher.Plan(bundle=bundle.root, grpc_port=0, http_port=0)
    asyncio.run(launcher.run(services, lambda addresses: asyncio.to_thread(ask, addresses.grpc)))
    table = table_of("TTFT about a picture, in seconds", results)
    report = Report("photo", {"model": bundle.model.id}, plan, results, [table])
    print(json.dumps(report.document(machine)) if options.json else report.text(machine))


if __name__ == "__main__":
    main()
