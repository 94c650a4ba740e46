"""Tokens from logits, for all rows of a step at once.

Our own instead of onnxruntime-genai's: with `top_k=0` the nucleus of genai 0.18 is not the one that `top_p` describes
(of 600 draws 559 lay outside it), and every engine is to draw alike.

What a row draws depends on its own logits, parameters and random numbers alone. Candidates stand likeliest first, ties
by id, and the draw walks down them until it has passed its random share of their weight. So how many candidates are
looked at changes nothing, and mostly a short head of the vocabulary will do: sorting all of it takes 20 ms.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.interface import Constraint, SamplingParams, TokenDrawn, TokenLogprob

# How many candidates are looked at first, and how many times more where those were not enough.
_HEAD = 1024
_GROWTH = 8


class Sampler:
    """The state of one answer: its parameters, its random numbers, and which tokens it has seen.

    Args:
        params: How its tokens are chosen.
        prompt: The prompt's tokens, int32 [n], for the repetition penalty.
        constraint: Which tokens may be drawn; None: all.
    """

    def __init__(self, params: SamplingParams, prompt: NDArray[np.int32], constraint: Constraint | None = None) -> None:
        self.params = params
        self._constraint = constraint
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._bias_ids = np.array(list(params.logit_bias), np.intp)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        # Ids seen anywhere, and how often the answer has each: kept only where a penalty asks for it.
        self._seen = np.unique(prompt).astype(np.intp) if params.repetition_penalty != 1 else np.empty(0, np.intp)
        self._counts: dict[int, int] = {}

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token, whatever the random numbers say."""
        return self.params.temperature == 0 or self.params.top_k == 1

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` does anything."""
        params = self.params
        return bool(
            self._constraint is not None
            or params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
            or self._bias.size
        )

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Penalties, bias and the constraint's mask, in place. `logits`: float32 [vocab]."""
        params = self.params
        if params.repetition_penalty != 1:
            values = logits[self._seen]
            logits[self._seen] = np.where(
                values < 0, values * params.repetition_penalty, values / params.repetition_penalty
            )
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._counts, np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
        logits[self._bias_ids] += self._bias
        if self._constraint is not None:
            np.copyto(logits, -np.inf, where=~self._constraint.mask())

    def share(self) -> float:
        """The next random number, in [0, 1)."""
        return float(self._random.random())

    def remember(self, token: int) -> None:
        """Count a token of the answer."""
        if self._constraint is not None:
            self._constraint.advance(token)
        if not self.adjusts:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        if self.params.repetition_penalty != 1 and self._counts[token] == 1:
            self._seen = np.union1d(self._seen, [token])


@dataclass(frozen=True)
class NotDrawn:
    """A row has no token.

    Attributes:
        why: For the log.
    """

    why: str


def draw(samplers: Sequence[Sampler], logits: NDArray[np.float32]) -> list[TokenDrawn | NotDrawn]:
    """Choose a token for each row, and remember it. A row that fails fails alone.

    Args:
        samplers: One for each row.
        logits: float32 [rows, vocab]; penalties are written into it.

    Returns:
        For each row its token, or why it has none: its logits are not finite, from a broken model or broken features,
        or its sampler raised.
    """
    likeliest = logits.argmax(axis=1)  # of equals the first; NaN counts as greatest
    finite = np.isfinite(np.take_along_axis(logits, likeliest[:, None], axis=1)[:, 0])
    failed = {int(row): NotDrawn("the model's logits are not finite") for row in np.flatnonzero(~finite)}
    reports = {
        row: _Report(logits[row], sampler.params.logprobs)
        for row, sampler in enumerate(samplers)
        if sampler.params.logprobs is not None and row not in failed
    }
    for row, sampler in enumerate(samplers):
        if row not in failed and sampler.adjusts:
            try:
                sampler.adjust(logits[row])
            except Exception:  # noqa: BLE001  # one request's failure is its own
                failed[row] = NotDrawn(traceback.format_exc())
            else:
                likeliest[row] = logits[row].argmax()
    tokens = likeliest
    drawing = [row for row, sampler in enumerate(samplers) if row not in failed and not sampler.greedy]
    if drawing:
        rows = logits[drawing] if len(drawing) < len(samplers) else logits
        tokens[drawing] = _sample([samplers[row] for row in drawing], rows)
    drawn: list[TokenDrawn | NotDrawn] = []
    for row, sampler in enumerate(samplers):
        if row in failed:
            drawn.append(failed[row])
            continue
        token = int(tokens[row])
        try:
            sampler.remember(token)
        except Exception:  # noqa: BLE001  # as above
            drawn.append(NotDrawn(traceback.format_exc()))
            continue
        drawn.append(reports[row].of(token) if row in reports else TokenDrawn(token))
    return drawn


class _Report:
    """Log probabilities of one row, taken before anything is changed in it."""

    def __init__(self, logits: NDArray[np.float32], alternatives: int) -> None:
        greatest = float(logits.max())
        total = greatest + float(np.log(np.exp(logits.astype(np.float64) - greatest).sum()))
        self._logits = logits.copy()
        self._total = total
        best = _likeliest(logits[None], alternatives)[0] if alternatives else ()
        self._alternatives = tuple(TokenLogprob(int(token), float(logits[token]) - total) for token in best)

    def of(self, token: int) -> TokenDrawn:
        return TokenDrawn(token, float(self._logits[token]) - self._total, self._alternatives)


@dataclass(frozen=True)
class _Rows:
    """Parameters of the rows that draw, one number for each, and what is computed of whole rows."""

    temperature: NDArray[np.float64]
    top_p: NDArray[np.float64]
    top_k: NDArray[np.intp]
    min_p: NDArray[np.float64]
    share: NDArray[np.float64]
    total: NDArray[np.float64]

    def at(self, rows: NDArray[np.intp]) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def _sample(samplers: Sequence[Sampler], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Draw for every row of `logits`, float32 [rows, vocab]; none of `samplers` is greedy."""
    vocabulary = logits.shape[1]
    params = [sampler.params for sampler in samplers]
    temperature = np.array([p.temperature for p in params])
    top_k = np.array([p.top_k if 0 < p.top_k < vocabulary else vocabulary for p in params])
    # Without top_k the weight of all tokens is the measure. float64, and relative to the greatest: exp neither
    # overflows nor makes all of them 0.
    total = np.full(len(params), np.nan)
    for row in np.flatnonzero(top_k == vocabulary):
        shifted = (logits[row].astype(np.float64) - float(logits[row].max())) / temperature[row]
        total[row] = np.exp(shifted).sum()
    rows = _Rows(
        temperature=temperature,
        top_p=np.array([p.top_p for p in params]),
        top_k=top_k,
        min_p=np.array([p.min_p for p in params]),
        share=np.array([sampler.share() for sampler in samplers]),
        total=total,
    )
    size = max(_HEAD, int(top_k[top_k < vocabulary].max(initial=0)))
    tokens = np.empty(len(params), np.intp)
    left = np.arange(len(params))
    while left.size:
        size = min(size, vocabulary)
        tokens[left], found = _walk(rows.at(left), logits[left], size)
        left = left[~found]
        size *= _GROWTH
    return tokens


def _walk(rows: _Rows, logits: NDArray[np.float32], size: int) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Draw from the `size` likeliest tokens of each row.

    Returns:
        The tokens, and whether those looked at were enough to say so.
    """
    ids = _likeliest(logits, size)
    kept = np.take_along_axis(logits, ids, axis=1).astype(np.float64)
    weights = np.exp((kept - kept[:, :1]) / rows.temperature[:, None])
    weights[np.arange(size)[None] >= rows.top_k[:, None]] = 0
    cumulative = np.cumsum(weights, axis=1)
    total = np.where(np.isnan(rows.total), cumulative[:, -1], rows.total)
    # A token is kept while those ahead of it have not reached top_p; the likeliest always is.
    ahead = cumulative - weights
    inside = (ahead < (rows.top_p * total)[:, None]) & (weights >= rows.min_p[:, None]) & (weights > 0)
    inside[:, 0] = True
    count = inside.sum(axis=1)
    last = cumulative[np.arange(len(ids)), count - 1]
    # Where something is cut off within those looked at, or top_k is, the weight of what is kept is known.
    cut = count < np.minimum(size, rows.top_k)
    complete = cut | (size >= rows.top_k)
    kept_weight = np.where(cut, last, total)
    place = (cumulative <= (rows.share * kept_weight)[:, None]).sum(axis=1)
    # With top_p or min_p it is not known before the cut is found; with neither it is that of the whole vocabulary.
    found = complete | ((place < size) & (rows.top_p >= 1) & (rows.min_p == 0))
    place = np.minimum(place, np.where(complete, count, size) - 1)
    return ids[np.arange(len(ids)), place], found


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids of the `count` greatest of each row, greatest first, ties by id, [rows, count]."""
    vocabulary = logits.shape[1]
    if count >= vocabulary:
        return np.argsort(-logits, axis=1, kind="stable")
    # Of those equal to the least of them a partition takes any; the ones with the least ids are wanted.
    least = np.partition(logits, vocabulary - count, axis=1)[:, vocabulary - count]
    ids = np.empty((len(logits), count), np.intp)
    for row, bound in enumerate(least):
        found = np.flatnonzero(logits[row] >= bound)
        ids[row] = found[np.argsort(-logits[row][found], kind="stable")[:count]]
    return ids
