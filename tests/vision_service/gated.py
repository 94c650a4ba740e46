"""An encoder that can be paused, and a scheduler around it."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import torch

from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.media import Advance, Cancelled, Kind, Options, PreparedMedium
from vision_service.scheduler import Scheduler


class GatedEncoder(Encoder):
    """An encoder whose forward passes wait for a gate, and that records its batches."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder._tower, out_dtype=encoder.out_dtype)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = lambda: False, advance: Advance = lambda _: None
    ) -> list[torch.Tensor]:
        self.batches.append([medium.grid.patches for medium in media])
        self.entered.set()
        assert self.gate.wait(30), "the gate was not opened within 30 s"
        return super().encode(media, cancelled, advance)


@asynccontextmanager
async def running(
    encoder: Encoder,
    prepare: Callable[[Kind, bytes, Options, Cancelled], PreparedMedium],
    *,
    max_queue: int = 8,
    max_batch_patches: int = 16,
) -> AsyncIterator[Scheduler]:
    """A scheduler that runs within the block."""
    scheduler = Scheduler(
        prepare, encoder, max_queue=max_queue, max_batch_patches=max_batch_patches, workers=2, threads=2
    )
    try:
        await scheduler.start()
        yield scheduler
    finally:
        if isinstance(encoder, GatedEncoder):
            encoder.gate.set()
        await scheduler.stop()
