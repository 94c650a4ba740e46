"""One request to an engine, with the times of its start and of each token."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine import Engine, EngineRequest, FeatureRows, Prefilled, SamplingParams, TokenDrawn
from decoder_service.families.family import Family
from decoder_service.families.registry import family_of
from serving.bundle import Bundle
from serving.tasks import gather_or_cancel

_NUMBERS = itertools.count(1)


class Stream:
    """One request. Times are seconds of `time.perf_counter`.

    Args:
        engine: The engine.
        request: The request.
    """

    def __init__(self, engine: Engine, request: EngineRequest) -> None:
        self._engine = engine
        self._request = request
        self._news = asyncio.Event()
        self._over = False
        self.asked = 0.0
        """Start of the request."""
        self.prefilled: Prefilled | None = None
        """The engine's event at the end of the prefill."""
        self.times: list[float] = []
        """Time of each token."""

    async def run(self) -> None:
        """Run the request to its end."""
        self.asked = time.perf_counter()
        try:
            # Always closed: a cancelled stream must not keep its slot.
            async with contextlib.aclosing(self._engine.generate(self._request)) as events:
                async for event in events:
                    if isinstance(event, TokenDrawn):
                        self.times.append(time.perf_counter())
                        self._news.set()
                    elif isinstance(event, Prefilled):
                        self.prefilled = event
        finally:
            self._over = True
            self._news.set()

    async def reaches(self, count: int) -> None:
        """Wait until `count` tokens have arrived, or the request has ended."""
        while len(self.times) < count and not self._over:
            self._news.clear()
            await self._news.wait()

    @property
    def first_token_seconds(self) -> float:
        """TTFT."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Times between tokens."""
        return [after - before for before, after in itertools.pairwise(self.times)]


class Prompts:
    """Prompts of random text tokens, all different, so that the prefix cache has none of them.

    Args:
        bundle: The bundle of the model.
        seed: The same seed gives the same prompts.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self._family = family_of(bundle)
        control = set(bundle.tokens.eos)
        if bundle.has_encoder:
            control |= set(bundle.media_tokens.model_dump(exclude={"eos", "pad"}).values())
        self._random = np.random.default_rng(seed)
        self._ids = np.setdiff1d(np.arange(bundle.text.vocab_size, dtype=np.int32), np.asarray(sorted(control)))

    def request(self, tokens: int, new_tokens: int) -> EngineRequest:
        """A request with a prompt of `tokens` and an answer of exactly `new_tokens` tokens."""
        return text_request(self._family, self._random.choice(self._ids, tokens).astype(np.int32), new_tokens)


def text_request(family: Family, token_ids: NDArray[np.int32], new_tokens: int) -> EngineRequest:
    """A greedy request without media and without stop tokens.

    Args:
        family: Family of the model.
        token_ids: The prompt, int32 [n].
        new_tokens: Length of the answer.
    """
    prompt = family.lay_out(token_ids.tolist(), (), lambda _: ())
    return EngineRequest(
        request_id=f"bench-{next(_NUMBERS)}",
        token_ids=prompt.engine_token_ids,
        positions=prompt.positions,
        features=FeatureRows.of(),
        media=prompt.media,
        inputs=prompt.inputs or {},
        sampling=SamplingParams(),
        max_new_tokens=new_tokens,
        stop_token_ids=frozenset(),
    )


async def all_of(streams: Sequence[Stream]) -> None:
    """Run streams concurrently. If one fails, the others are cancelled and its exception is raised."""
    await gather_or_cancel(stream.run() for stream in streams)
