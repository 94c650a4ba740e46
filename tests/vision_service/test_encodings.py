"""Each picture is encoded once, however many want it; whoever leaves harms nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from serving.errors import ServiceError
from tests import pictures
from tests.vision_service.gated import GatedEncoder, running
from vision_service.cache import Encoded, FeatureCache, Key
from vision_service.encodings import SOURCES, Encodings
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Cancelled, Kind, Options, PreparedMedium

PICTURE, OTHER = pictures.png(pictures.noise(96, 64)), pictures.png(pictures.noise(64, 64))


@dataclass
class House:
    """Encodings over a scheduler that runs, and what was prepared for them."""

    encodings: Encodings
    encoder: GatedEncoder
    cache: FeatureCache
    prepared: list[bytes] = field(default_factory=list)

    async def get(self, data: bytes, options: Options = Options(), scope: str = "") -> Encoded:  # noqa: B008  # it is frozen
        """Ask for features, as a call does."""
        async with self.encodings.acquire(Key.of(str(hash(data)), "image", options, scope), data) as encoding:
            await encoding.layout()
            return await encoding.encoded()

    async def hold(self) -> None:
        """Let nothing through the encoder."""
        self.encoder.entered.clear()
        self.encoder.gate.clear()

    async def held(self) -> None:
        """Until the encoder has begun."""
        assert await asyncio.to_thread(self.encoder.entered.wait, 30), "the encoder has not begun within 30 s"


Open = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def house(gated: GatedEncoder, preprocessor: Preprocessor) -> Open:
    """Opens a house."""

    @asynccontextmanager
    async def open_house(max_bytes: int = 1 << 20) -> AsyncIterator[House]:
        cache = FeatureCache(max_bytes)

        def prepare(kind: Kind, data: bytes, options: Options, cancelled: Cancelled) -> PreparedMedium:
            opened.prepared.append(data)
            return preprocessor.prepare(kind, data, options, cancelled)

        async with running(gated, prepare) as scheduler:
            opened = House(Encodings(scheduler, cache), gated, cache)
            gated.batches.clear()
            yield opened

    return open_house


async def test_scopes_share_nothing(house: Open) -> None:
    """Neither features that are kept nor an encoding that runs are used for another scope."""
    async with house() as opened:
        await opened.hold()
        waiting = [asyncio.create_task(opened.get(PICTURE, scope=scope)) for scope in ("a", "b", "a")]
        await opened.held()
        opened.encoder.gate.set()
        one, other, same = await asyncio.gather(*waiting)
        assert one is same
        assert one is not other
        assert len(opened.prepared) == 2
        assert await opened.get(PICTURE, scope="a") is one
        await opened.get(PICTURE)
        assert len(opened.prepared) == 3


async def test_seen_before(house: Open) -> None:
    """What is asked for again is neither decoded nor encoded again: the same features come out."""
    async with house() as opened:
        first, again = await opened.get(PICTURE), await opened.get(PICTURE)
        assert again is first
        assert (len(opened.prepared), len(opened.encoder.batches)) == (1, 1)
        assert opened.cache.nbytes == first.features.nbytes
        other = await opened.get(OTHER)
        assert other.layout != first.layout
        assert len(opened.encoder.batches) == 2


async def test_asked_for_together(house: Open) -> None:
    """Requests for one medium at the same time share one encoding, with a cache and without."""
    for max_bytes in (1 << 20, 0):
        async with house(max_bytes) as opened:
            before = SOURCES.labels("shared")._value.get()
            everyone = await asyncio.gather(*(opened.get(PICTURE) for _ in range(5)), opened.get(OTHER))
            assert len({id(one) for one in everyone}) == 2
            assert sorted(opened.prepared) == sorted([PICTURE, OTHER])
            assert SOURCES.labels("shared")._value.get() - before == 4


@pytest.mark.parametrize("leaves", [0, 1], ids=["the first", "the second"])
async def test_one_that_leaves_harms_no_other(leaves: int, house: Open) -> None:
    """Of two that share an encoding either may go: the other gets its features, encoded once."""
    async with house() as opened:
        await opened.hold()
        tasks = [asyncio.create_task(opened.get(PICTURE)) for _ in range(2)]
        await opened.held()
        tasks[leaves].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[leaves]
        opened.encoder.gate.set()
        encoded = await tasks[1 - leaves]
        assert isinstance(encoded.features, torch.Tensor)
        assert len(opened.encoder.batches) == 1
        assert await opened.get(PICTURE) is encoded


async def test_what_nobody_wants_is_stopped(house: Open) -> None:
    """With the last that wanted it an encoding ends, is not kept, and the next request begins a new one."""
    async with house() as opened:
        await opened.hold()
        tasks = [asyncio.create_task(opened.get(PICTURE)) for _ in range(2)]
        await opened.held()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert len(opened.encodings._in_flight) == 0
        renewed = asyncio.create_task(opened.get(PICTURE))
        opened.encoder.gate.set()
        await renewed
        assert len(opened.prepared) == 2
        assert len(opened.encoder.batches) == 2


async def test_failures_reach_all_and_are_not_kept(house: Open) -> None:
    """A medium that is refused is refused to all who asked, and tried again for the next."""
    async with house() as opened:
        results = await asyncio.gather(*(opened.get(b"text") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, ServiceError) and one.reason == "IMAGE_UNREADABLE" for one in results)
        with pytest.raises(ServiceError):
            await opened.get(b"text")
        assert len(opened.prepared) == 2
        assert (len(opened.cache), len(opened.encodings._in_flight)) == (0, 0)
        await opened.get(PICTURE)


async def test_layout_of_what_is_cached(house: Open) -> None:
    """A layout is told without preparing the medium where its features are kept, and is the same."""
    async with house() as opened:
        key = Key.of(str(hash(PICTURE)), "image", Options())
        before = await opened.encodings.layout(key, PICTURE)
        assert (await opened.get(PICTURE)).layout == before
        assert await opened.encodings.layout(key, PICTURE) == before
        assert len(opened.prepared) == 2


async def test_features_that_are_not_finite_are_not_cached(house: Open) -> None:
    """The request fails; the next one about the same picture gets features of an encoder that works again."""
    async with house() as opened:
        encode = opened.encoder.encode

        def broken(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
            return [torch.full_like(one, torch.inf) for one in encode(media, *watchers)]

        opened.encoder.encode = broken  # type: ignore[method-assign]
        with pytest.raises(ServiceError) as caught:
            await opened.get(PICTURE)
        assert caught.value.reason == "FEATURES_NOT_FINITE"
        assert len(opened.cache) == 0
        opened.encoder.encode = encode  # type: ignore[method-assign]
        assert torch.isfinite((await opened.get(PICTURE)).features).all()
