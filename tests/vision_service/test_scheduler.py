"""The scheduler packs what waits, forgets what is cancelled, and refuses what is too much."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from serving.errors import Code, ServiceError, invalid
from tests import pictures
from tests.vision_service.clips import noises
from tests.vision_service.conftest import error
from tests.vision_service.gated import GatedEncoder, running
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Cancelled, Grid, Kind, Options, PreparedMedium, WorkCancelledError
from vision_service.scheduler import Scheduler


@pytest.fixture
def medium(preprocessor: Preprocessor) -> Callable[[int], PreparedMedium]:
    """Makes an image of a number of columns of two patches by two."""

    def make(columns: int) -> PreparedMedium:
        options = Options(min_pixels=1024, max_pixels=1024 * columns)
        return preprocessor.prepare("image", pictures.png(pictures.noise(32 * columns, 32)), options)

    return make


@pytest.fixture
def video(preprocessor: Preprocessor) -> PreparedMedium:
    """A video of five temporal patches of four by four patches."""
    data = pictures.video(noises(10, 64, 64), 5)
    return preprocessor.prepare("video", data, Options(fps=5.0, max_frames=10, max_video_pixels=10 * 64 * 64))


async def close_gate(
    encoder: GatedEncoder, scheduler: Scheduler, first: PreparedMedium, stack: contextlib.ExitStack
) -> asyncio.Future[torch.Tensor]:
    """Let one medium into the encoder and hold it there, so that what comes after it must wait; returns its future."""
    encoder.batches.clear()
    encoder.entered.clear()
    encoder.gate.clear()
    held = stack.enter_context(scheduler.enqueue(first))
    assert await asyncio.to_thread(encoder.entered.wait, 30), "the encoder has not begun within 30 s"
    return held


async def test_waiting_media_are_packed(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """What waits goes into one forward in order of arrival, up to the budget; what is larger goes alone."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            media = [medium(n) for n in (1, 2, 1, 1, 6, 2)]
            pending = [stack.enter_context(scheduler.enqueue(one)) for one in media]
            gated.gate.set()
            features = await asyncio.gather(*pending)
        assert gated.batches == [[4], [4, 8, 4], [4], [24], [8]]
        for one, got in zip(media, features, strict=True):
            assert error(got, gated.encode([one])[0]) <= 1e-5


async def test_a_long_video_lets_others_pass(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium], video: PreparedMedium
) -> None:
    """A video larger than a batch goes in pieces of whole frames, between which it queues up again behind others."""
    async with running(gated, preprocessor.prepare, max_batch_patches=36) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            media = [video, medium(2), medium(6), medium(1)]
            pending = [stack.enter_context(scheduler.enqueue(one)) for one in media]
            gated.gate.set()
            features = await asyncio.gather(*pending)
        assert video.grid == (5, 4, 4)
        assert gated.batches == [[4], [32], [8, 24, 4], [32], [16]]
        for one, got in zip(media, features, strict=True):
            assert error(got, gated.encode([one])[0]) <= 1e-5


async def test_two_long_videos_take_turns(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium], video: PreparedMedium
) -> None:
    """Two videos advance together; one that goes leaves the encoder to the other, whose features stay right."""
    async with running(gated, preprocessor.prepare, max_batch_patches=16) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            gone = contextlib.ExitStack()
            gone.enter_context(scheduler.enqueue(video))
            kept = stack.enter_context(scheduler.enqueue(replace(video, patches=video.patches[::-1].copy())))
            encode, calls = gated.encode, 0

            def counted(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
                nonlocal calls
                calls += 1
                if calls == 4:
                    loop.call_soon_threadsafe(gone.close)
                return encode(media, *watchers)

            loop = asyncio.get_running_loop()
            gated.encode = counted  # type: ignore[method-assign]
            gated.gate.set()
            features = await kept
        # Of ten pieces at least one of those of the video that went was never encoded.
        assert calls < 10
        assert error(features, encode([replace(video, patches=video.patches[::-1].copy())])[0]) <= 1e-5


async def test_any_mix_gives_each_its_own(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium], video: PreparedMedium
) -> None:
    """Whatever arrives together and whoever leaves meanwhile, each that stays gets what it gets alone."""
    draw = random.Random(7)
    known = [video, video.frames(1, 3), *(medium(n) for n in range(1, 7))]
    alone = [gated.encode([one])[0] for one in known]
    async with running(gated, preprocessor.prepare, max_batch_patches=40) as scheduler:

        async def request(index: int, turns: int | None) -> None:
            with scheduler.enqueue(known[index]) as pending:
                if turns is None:
                    assert error(await pending, alone[index]) <= 1e-5
                    served.append(index)
                else:  # leaves after some turns of the loop, wherever its work is by then
                    for _ in range(turns):
                        await asyncio.sleep(0)

        served: list[int] = []
        for _ in range(5):
            async with asyncio.TaskGroup() as group:
                for _ in range(12):
                    group.create_task(request(draw.randrange(len(known)), draw.choice((1, 200, None, None))))
        assert len(served) >= 20
        assert scheduler.waiting == 0


async def test_cancelled_while_waiting(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """A request that goes while it waits is never encoded; those behind it move up."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)

            queued = asyncio.Event()

            async def request() -> None:
                with scheduler.enqueue(medium(2)) as pending:
                    queued.set()
                    await pending

            task = asyncio.create_task(request())
            await queued.wait()
            behind = stack.enter_context(scheduler.enqueue(medium(3)))
            assert scheduler.waiting == 2
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scheduler.waiting == 1
            gated.gate.set()
            await behind
        assert gated.batches == [[4], [12]]


async def test_cancelled_while_encoding(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """The encoder stops a batch that nobody waits for, and not one that somebody does."""
    stopped: list[type[BaseException] | None] = []
    encode = gated.encode

    def watched(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
        try:
            features = encode(media, *watchers)
        except BaseException as error:
            stopped.append(type(error))
            raise
        stopped.append(None)
        return features

    gated.encode = watched  # type: ignore[method-assign]
    async with running(gated, preprocessor.prepare) as scheduler:
        stopped.clear()
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            kept = stack.enter_context(scheduler.enqueue(medium(1)))
            gone = contextlib.ExitStack()
            gone.enter_context(scheduler.enqueue(medium(1)))
            gated.gate.set()
            await asyncio.wait([kept])
            gone.close()
        assert stopped == [None, None]
        stopped.clear()
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
        gated.gate.set()
        with scheduler.enqueue(medium(1)) as pending:
            assert (await pending).shape[0] == 1
        assert stopped == [WorkCancelledError, None]


async def test_full_house(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """One request more than there are places is refused with a delay, and admitted once a place is free."""
    async with running(gated, preprocessor.prepare, max_queue=2) as scheduler:
        with scheduler.admit():
            with scheduler.admit():
                with pytest.raises(ServiceError) as caught, scheduler.admit():
                    pass
                assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
                assert caught.value.retry_after is not None
                assert caught.value.retry_after > 0
                assert "2 requests" in caught.value.message
            with scheduler.admit():
                assert scheduler.held == 2
        assert scheduler.held == 0


async def test_one_bad_medium_harms_no_other(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """Where a forward fails, its media are tried alone: only the one at fault fails."""
    good = medium(1)
    bad = PreparedMedium(
        "image", Grid(1, 2, 2), np.zeros((3, 3, 2, 16, 16), np.uint8), good.levels
    )  # three patches of four
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, good, stack)
            pending = [stack.enter_context(scheduler.enqueue(one)) for one in (good, bad, good)]
            gated.gate.set()
            results = await asyncio.gather(*pending, return_exceptions=True)
        assert isinstance(results[0], torch.Tensor)
        assert isinstance(results[1], RuntimeError)
        assert isinstance(results[2], torch.Tensor)
        assert gated.batches == [[4], [4, 4, 4], [4], [4], [4]]


async def test_stop_refuses_what_waits(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """Stopping ends what runs at its next layer and tells those who wait to go elsewhere."""
    async with running(gated, preprocessor.prepare) as scheduler:
        stack = contextlib.ExitStack()
        await close_gate(gated, scheduler, medium(1), stack)
        pending = stack.enter_context(scheduler.enqueue(medium(1)))
        gated.gate.set()
        await scheduler.stop()
        with pytest.raises(ServiceError) as caught:
            await pending
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "SHUTTING_DOWN")
        stack.close()


async def test_preparing_goes_on_beside_encoding(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """Media are preprocessed while the encoder is busy, and the event loop is free meanwhile."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            data = pictures.png(pictures.noise(64, 64))
            both = await asyncio.gather(*(scheduler.prepare("image", data, Options()) for _ in range(2)))
            assert [one.grid for one in both] == [(1, 4, 4)] * 2
            gated.gate.set()


async def test_refused_media_raise_where_they_are_prepared(gated: GatedEncoder, preprocessor: Preprocessor) -> None:
    """A refusal reaches whoever asked."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with pytest.raises(ServiceError, match="no image"):
            await scheduler.prepare("image", b"text", Options())


async def test_cancelled_while_preparing(gated: GatedEncoder) -> None:
    """Preprocessing is told that nobody waits any more."""
    entered, told, over = threading.Event(), threading.Event(), threading.Event()

    def prepare(kind: Kind, data: bytes, options: Options, cancelled: Cancelled) -> PreparedMedium:
        entered.set()
        while not cancelled() and not over.is_set():
            pass
        if cancelled():
            told.set()
        raise invalid("data", "too late")

    async with running(gated, prepare) as scheduler:
        try:
            task = asyncio.create_task(scheduler.prepare("video", b"", Options()))
            assert await asyncio.to_thread(entered.wait, 30), "preprocessing has not begun within 30 s"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(told.wait, 30), "preprocessing was not told within 30 s"
        finally:
            over.set()


def spoiled(gated: GatedEncoder, spoil: Callable[[int, int], bool]) -> None:
    """Let some features be NaN.

    Args:
        gated: The encoder.
        spoil: From the number of the forward pass, from 0 on, and the patches of a medium: whether its features are.
    """
    encode, passes = gated.encode, itertools.count()

    def spoiling(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
        number = next(passes)
        return [
            torch.full_like(one, torch.nan) if spoil(number, medium.grid.patches) else one
            for medium, one in zip(media, encode(media, *watchers), strict=True)
        ]

    gated.encode = spoiling  # type: ignore[method-assign]


async def test_features_that_are_not_finite_fail_their_own_medium(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """A medium whose features are not finite twice fails with its reason; those beside it have theirs."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            spoiled(gated, lambda _, patches: patches == 8)
            pending = [stack.enter_context(scheduler.enqueue(medium(tokens))) for tokens in (1, 2, 1)]
            gated.gate.set()
            results = await asyncio.gather(*pending, return_exceptions=True)
        assert isinstance(results[1], ServiceError)
        assert (results[1].code, results[1].reason) == (Code.INTERNAL, "FEATURES_NOT_FINITE")
        for result in (results[0], results[2]):
            assert isinstance(result, torch.Tensor)
            assert torch.isfinite(result).all()


async def test_a_fault_that_does_not_repeat_itself_is_not_noticed(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """A medium that is alone is encoded again, and its features are those of an encoder without a fault."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with scheduler.enqueue(medium(2)) as pending:
            expected = await pending
        spoiled(gated, lambda number, _: number == 0)
        with scheduler.enqueue(medium(2)) as pending:
            assert torch.equal(await pending, expected)


async def test_a_batch_that_failed_for_another_cause_leaves_each_its_second_computation(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium]
) -> None:
    """Features that are not finite when a medium of a failed batch is encoded alone are computed once more."""
    async with running(gated, preprocessor.prepare) as scheduler:
        with contextlib.ExitStack() as stack:
            await close_gate(gated, scheduler, medium(1), stack)
            encode, calls = gated.encode, itertools.count()

            def faulty(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
                features = encode(media, *watchers)
                match next(calls):
                    case 0:
                        raise RuntimeError("a fault of the machine")
                    case 1:
                        return [torch.full_like(one, torch.nan) for one in features]
                return features

            gated.encode = faulty  # type: ignore[method-assign]
            pending = [stack.enter_context(scheduler.enqueue(medium(tokens))) for tokens in (2, 1)]
            gated.gate.set()
            features = await asyncio.gather(*pending)
        assert gated.batches == [[4], [8, 4], [8], [8], [4]]
        assert all(torch.isfinite(one).all() for one in features)


async def test_a_warm_up_that_fails_leaves_no_threads(gated: GatedEncoder, preprocessor: Preprocessor) -> None:
    """The error is raised, and the encoder's thread has ended."""
    threads: list[threading.Thread] = []

    def failing(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
        threads.append(threading.current_thread())
        raise RuntimeError("a fault of the machine")

    gated.encode = failing  # type: ignore[method-assign]
    scheduler = Scheduler(preprocessor.prepare, gated, max_queue=8, max_batch_patches=16, workers=2, threads=2)
    with pytest.raises(RuntimeError, match="a fault of the machine"):
        await scheduler.start()
    assert [thread.is_alive() for thread in threads] == [False]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to "),
    ],
    ids=["python", "torch"],
)
async def test_no_memory_fails_one_medium(
    gated: GatedEncoder, preprocessor: Preprocessor, medium: Callable[[int], PreparedMedium], error: Exception
) -> None:
    """An allocation that fails, as Python or as PyTorch says it on a CPU, fails its medium alone, with its reason."""
    async with running(gated, preprocessor.prepare) as scheduler:
        encode = gated.encode

        def failing(media: Sequence[PreparedMedium], *watchers: Any) -> list[torch.Tensor]:
            raise error

        gated.encode = failing  # type: ignore[method-assign]
        with scheduler.enqueue(medium(2)) as pending, pytest.raises(ServiceError, match="8 patches") as caught:
            await pending
        assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
        gated.encode = encode  # type: ignore[method-assign]
        with scheduler.enqueue(medium(2)) as pending:
            assert (await pending).shape[0] == 2


async def test_no_memory_to_decode_a_picture(gated: GatedEncoder) -> None:
    """The file is refused with a reason, and no traceback."""

    def prepare(kind: Kind, data: bytes, options: Options, cancelled: Cancelled) -> PreparedMedium:
        raise MemoryError

    async with running(gated, prepare) as scheduler:
        with pytest.raises(ServiceError, match="decode the image") as caught:
            await scheduler.prepare("image", b"", Options())
        assert caught.value.reason == "OUT_OF_MEMORY"
