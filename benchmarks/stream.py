"""One request to an engine, watched: when it was asked for and when each token came."""

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
    """Times are seconds of `time.perf_counter`.

    Args:
        engine: Answers.
        request: What it is asked.
    """

    def __init__(self, engine: Engine, request: EngineRequest) -> None:
        self._engine = engine
        self._request = request
        self._news = asyncio.Event()
        self._over = False
        self.asked = 0.0
        """When it was asked for."""
        self.prefilled: Prefilled | None = None
        """What the engine says of the prompt."""
        self.times: list[float] = []
        """When each token came."""

    async def run(self) -> None:
        """Take every token."""
        self.asked = time.perf_counter()
        try:
            # Closed on every way out: a stream that is not wanted any more must not keep a slot.
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
        """Wait until so many tokens have come, or it is over."""
        while len(self.times) < count and not self._over:
            self._news.clear()
            await self._news.wait()

    @property
    def first_token_seconds(self) -> float:
        """From the question to the first token."""
        return self.times[0] - self.asked

    @property
    def gaps(self) -> list[float]:
        """Seconds from each token to the next."""
        return [after - before for before, after in itertools.pairwise(self.times)]


class Prompts:
    """Prompts of random text tokens, each unlike all others, so that no cache can spare any of them.

    Args:
        bundle: Whose tokens.
        seed: The same seed gives the same prompts.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        tokens = bundle.tokens
        self._family = family_of(bundle)
        control = {tokens.image, tokens.video, tokens.vision_start, tokens.vision_end, *tokens.eos}
        self._random = np.random.default_rng(seed)
        self._ids = np.setdiff1d(np.arange(bundle.text.vocab_size, dtype=np.int32), np.asarray(sorted(control)))

    def request(self, tokens: int, new_tokens: int) -> EngineRequest:
        """A request for a prompt and an answer of so many tokens; nothing ends it before."""
        return text_request(self._family, self._random.choice(self._ids, tokens).astype(np.int32), new_tokens)


def text_request(family: Family, token_ids: NDArray[np.int32], new_tokens: int) -> EngineRequest:
    """A greedy request without media that nothing ends before its length.

    Args:
        family: Of the model.
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
        inputs=prompt.inputs,
        sampling=SamplingParams(),
        max_new_tokens=new_tokens,
        stop_token_ids=frozenset(),
    )


async def all_of(streams: Sequence[Stream]) -> None:
    """Run streams at the same time. When one fails the others end, and its failure is raised."""
    await gather_or_cancel(stream.run() for stream in streams)
