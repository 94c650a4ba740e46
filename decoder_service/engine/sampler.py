"""Samples tokens from logits, for all rows of a step at once.

Our own sampler instead of onnxruntime-genai's: with `top_k=0`, genai 0.18 does not sample from the nucleus that `top_p`
describes (559 of 600 tokens were outside it), and both engines must sample alike.

The token of a row depends only on its own logits, parameters and random numbers. Candidates are sorted by probability,
ties by id, and the sampler takes the first whose cumulative weight exceeds a random share of the total. So the number
of sorted candidates does not change the result, and mostly a few are enough: sorting the whole vocabulary takes 20 ms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.interface import Constraint, ConstraintError, SamplingParams, TokenDrawn, TokenLogprob
from serving.logs import trace

# Number of candidates sorted first, and the factor by which it grows if they were not enough.
_HEAD = 1024
_GROWTH = 8

_MOST_LOGIT = float(np.finfo(np.float32).max) / 4
"""Penalties leave no logit beyond it: differences of logits stay finite."""


class Sampler:
    """The sampling state of one request: its parameters, random numbers, and counts of tokens.

    Args:
        params: Sampling parameters.
        prompt: The prompt's tokens, int32 [n], for the repetition penalty.
        constraint: Which tokens may be drawn; None: all.
        stop_token_ids: Tokens that end the answer, for `min_tokens`.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: NDArray[np.int32],
        constraint: Constraint | None = None,
        *,
        stop_token_ids: Collection[int] = (),
    ) -> None:
        self.params = params
        self._constraint = constraint
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._stop_ids = np.array(sorted(stop_token_ids), np.intp)
        self._early = params.min_tokens if stop_token_ids else 0  # tokens left to draw before one may stop
        self._bias_ids = np.array(list(params.logit_bias), np.intp)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        # Ids of prompt and answer, and counts of those in the answer: kept only if a penalty needs them.
        self._seen = np.unique(prompt).astype(np.intp) if params.repetition_penalty != 1 else np.empty(0, np.intp)
        self._counts: dict[int, int] = {}

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self.params.temperature == 0 or self.params.top_k == 1

    @property
    def adjusts(self) -> bool:
        """Whether `adjust` changes the logits."""
        params = self.params
        return bool(
            self._constraint is not None
            or self._early
            or params.repetition_penalty != 1
            or params.presence_penalty
            or params.frequency_penalty
            or self._bias.size
        )

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Apply penalties, bias and the constraint's mask in place. `logits`: float32 [vocab]."""
        params = self.params
        if params.repetition_penalty != 1:
            values = logits[self._seen]
            with np.errstate(over="ignore"):  # of a penalty near 0 or very large
                values = np.where(values < 0, values * params.repetition_penalty, values / params.repetition_penalty)
            logits[self._seen] = np.clip(values, -_MOST_LOGIT, _MOST_LOGIT)
        if self._counts and (params.presence_penalty or params.frequency_penalty):
            ids = np.fromiter(self._counts, np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
        logits[self._bias_ids] += self._bias
        if self._constraint is not None:
            np.copyto(logits, -np.inf, where=~self._constraint.mask())
        if self._early:
            held = logits[self._stop_ids]
            logits[self._stop_ids] = -np.inf
            if logits.max() == -np.inf:  # the form is complete: nothing else may follow
                logits[self._stop_ids] = held

    def share(self) -> float:
        """The next random number, in [0, 1)."""
        return float(self._random.random())

    def forced(self) -> Iterator[int]:
        """The tokens behind the last one for which the constraint leaves no choice. Each is counted as if sampled."""
        if self._constraint is None:
            return
        for token in self._constraint.forced():
            if not self.greedy:
                self.share()  # with or without forced tokens, a seed gives the same answer
            self._count(token)
            yield token

    def remember(self, token: int) -> None:
        """Count a token of the answer."""
        if self._constraint is not None:
            self._constraint.advance(token)
        self._count(token)

    def _count(self, token: int) -> None:
        if not self.adjusts:
            return
        self._early = max(self._early - 1, 0)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self.params.repetition_penalty != 1 and self._counts[token] == 1:
            self._seen = np.union1d(self._seen, [token])


@dataclass(frozen=True)
class NotDrawn:
    """No token could be sampled for a row.

    Attributes:
        why: The reason, for the log.
        constraint: The reason for the client, if its constraint can go no further.
        finite: Whether the logits of the row are finite.
    """

    why: str
    constraint: str = ""
    finite: bool = True


def draw(samplers: Sequence[Sampler], logits: NDArray[np.float32]) -> list[TokenDrawn | NotDrawn]:
    """Sample a token for each row, and count it. A row that fails does not affect others.

    Args:
        samplers: The sampler of each row.
        logits: float32 [rows, vocab]; penalties are applied in place.

    Returns:
        For each row its token, or why it has none: its logits are not finite, because of an invalid model or invalid
        features, or its sampler raised an exception.
    """
    likeliest = logits.argmax(axis=1)  # the first of equal ones; NaN counts as greatest
    finite = np.isfinite(np.take_along_axis(logits, likeliest[:, None], axis=1)[:, 0])
    failed = {int(row): NotDrawn("the model's logits are not finite", finite=False) for row in np.flatnonzero(~finite)}
    reports = {
        row: _Report(logits[row], sampler.params.logprobs)
        for row, sampler in enumerate(samplers)
        if sampler.params.logprobs is not None and row not in failed
    }
    for row, sampler in enumerate(samplers):
        if row not in failed and sampler.adjusts:
            try:
                sampler.adjust(logits[row])
            except ConstraintError as error:
                failed[row] = NotDrawn("the constraint can go no further", str(error))
            except Exception:  # noqa: BLE001  # a failure of one request must not affect others
                failed[row] = NotDrawn(trace())
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
            drawn.append(NotDrawn(trace()))
            continue
        drawn.append(reports[row].of(token) if row in reports else TokenDrawn(token))
    return drawn


class _Report:
    """Log probabilities of one row, computed before its logits are changed."""

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
    """Parameters of the sampled rows as arrays, and values computed over whole rows."""

    temperature: NDArray[np.float64]
    top_p: NDArray[np.float64]
    top_k: NDArray[np.intp]
    min_p: NDArray[np.float64]
    share: NDArray[np.float64]
    total: NDArray[np.float64]

    def at(self, rows: NDArray[np.intp]) -> _Rows:
        return _Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def _sample(samplers: Sequence[Sampler], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Sample every row of `logits`, float32 [rows, vocab]; none of `samplers` is greedy."""
    vocabulary = logits.shape[1]
    params = [sampler.params for sampler in samplers]
    temperature = np.array([p.temperature for p in params])
    top_k = np.array([p.top_k if 0 < p.top_k < vocabulary else vocabulary for p in params])
    # Without top_k the total weight of all tokens is needed. float64, and relative to the greatest logit, so that exp
    # neither overflows nor underflows for all of them.
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
    """Sample from the `size` likeliest tokens of each row.

    Returns:
        The tokens, and whether `size` candidates were enough to determine each.
    """
    ids = _likeliest(logits, size)
    kept = np.take_along_axis(logits, ids, axis=1).astype(np.float64)
    weights = np.exp((kept - kept[:, :1]) / rows.temperature[:, None])
    weights[np.arange(size)[None] >= rows.top_k[:, None]] = 0
    cumulative = np.cumsum(weights, axis=1)
    total = np.where(np.isnan(rows.total), cumulative[:, -1], rows.total)
    # A token is kept while the tokens before it have not reached top_p; the likeliest always is.
    ahead = cumulative - weights
    inside = (ahead < (rows.top_p * total)[:, None]) & (weights >= rows.min_p[:, None]) & (weights > 0)
    inside[:, 0] = True
    count = inside.sum(axis=1)
    last = cumulative[np.arange(len(ids)), count - 1]
    # If the cut is within the candidates, or top_k is, the weight of the kept tokens is known.
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
    # A partition takes any of the tokens equal to the least kept one; take those with the smallest ids.
    least = np.partition(logits, vocabulary - count, axis=1)[:, vocabulary - count]
    ids = np.empty((len(logits), count), np.intp)
    for row, bound in enumerate(least):
        found = np.flatnonzero(logits[row] >= bound)
        ids[row] = found[np.argsort(-logits[row][found], kind="stable")[:count]]
    return ids
