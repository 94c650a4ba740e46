"""How far the next token of a bundle's graphs is from a reference's.

The reference answers greedily, and every graph is led along the same tokens, so that all of them are asked the same
questions. At each position the distributions over the vocabulary are compared.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluation.prompts import Laid, Layouts, Shown, features_of
from evaluation.reference import Answered, Reference, longest
from evaluation.shelf import Kept, Shelf
from exporter.divergence import Asked, Graph, kl_divergence
from exporter.encoder_types import TYPES, missing
from serving.bundle import Bundle

T = TypeVar("T")

Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")
"""`prefill`: the token after the prompt. `decode`: those after each token of the answer."""

NO_ENCODER = "none"
"""Stands for the encoder's type where the model takes text only."""

_STEPS = 16


class Bars(Protocol):
    """Shows progress."""

    def bar(self, title: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Show a bar of `total` units."""


class Way(NamedTuple):
    """Which graph computes what."""

    prefill: str
    decode: str


@dataclass(frozen=True)
class Found:
    """What was found in one phase.

    Attributes:
        mean: mean Kullback-Leibler divergence of the graph's distribution from the reference's, in nats; None where the
            graph gives no numbers.
        largest: the largest at any position; None likewise.
        agreement: share of the positions where both have the same likeliest token.
        positions: how many were compared.
    """

    mean: float | None
    largest: float | None
    agreement: float
    positions: int


@dataclass(frozen=True)
class Row:
    """One way through the graphs behind features of one type.

    Attributes:
        prefill_graph: reads the prompt.
        decode_graph: writes the answer.
        encoder: type that the encoder computes in, or `NO_ENCODER`.
        prefill: what was found there; None where it was not asked for.
        decode: likewise.
    """

    prefill_graph: str
    decode_graph: str
    encoder: str
    prefill: Found | None
    decode: Found | None

    @property
    def graphs(self) -> str:
        """For people."""
        same = self.prefill_graph == self.decode_graph
        return self.decode_graph if same else f"{self.prefill_graph}, then {self.decode_graph}"


@dataclass(frozen=True)
class Comparison:
    """A bundle beside a reference.

    Attributes:
        reference: what it was compared with.
        prompts: how many.
        rows: what was found.
        left_out: why a type of the encoder was not looked at, by its name.
    """

    reference: str
    prompts: int
    rows: Sequence[Row]
    left_out: dict[str, str]


def compare(
    bundle: Bundle,
    reference: Reference,
    shown: Sequence[Shown],
    *,
    encoders: Sequence[str] | None = None,
    phases: Sequence[Phase] = PHASES,
    max_pixels: int | None = None,
    bars: Bars,
) -> Comparison:
    """Compare every graph, behind features of every type, with the reference.

    Args:
        bundle: what is compared.
        reference: with what.
        shown: pictures and texts, at least one.
        encoders: types that the encoder computes in; None takes float32 and those that this machine can compute of
            bfloat16 and int8. Without effect where there is no encoder.
        phases: what is looked at.
        max_pixels: greatest area of a resized picture; None takes the default of a vision service on a CPU.
        bars: show progress.

    Raises:
        EvaluationError: the reference cannot answer, or pictures are shown to a model that takes text only.
        ServiceError: a picture is refused.
    """
    names, left_out = [NO_ENCODER], {}
    if bundle.has_encoder:
        names = ["float32", *TYPES] if encoders is None else list(dict.fromkeys(encoders))
        left_out = {name: why for name in names if (why := missing(name)) is not None}
        names = [name for name in names if name not in left_out]
    ways = _ways(bundle, phases)
    steps = _STEPS if "decode" in phases else 0
    with Shelf() as shelf:
        layouts = Layouts(bundle, max_pixels)
        with bars.bar("laying out", total=len(shown), unit="prompts") as advance:
            laid = [layouts.lay_out(one) for one in _counted(shown, advance)]
        with bars.bar("reference", total=len(laid), unit="prompts") as advance:
            answered = list(reference.answers(laid, steps, shelf, advance))
        features = {}
        with bars.bar("encoder", total=len(laid) * len(names), unit="prompts") as advance:
            for name in names:
                features[name] = [shelf.put(rows) for rows in _counted(features_of(bundle, laid, name), advance)]
        rows = []
        with bars.bar("graphs", total=len(laid) * len(names) * len(ways), unit="prompts") as advance:
            for way in ways:
                graph = Graph(bundle, way.decode, prefill=way.prefill, length=longest(laid) + steps + 1)
                for name in names:
                    found = _lead(graph, laid, features[name], _counted(answered, advance))
                    rows.append(
                        Row(
                            *way,
                            name,
                            found["prefill"] if "prefill" in phases else None,
                            found["decode"] if "decode" in phases else None,
                        )
                    )
                del graph
                gc.collect()
    return Comparison(reference.title, len(laid), rows, left_out)


def _ways(bundle: Bundle, phases: Sequence[Phase]) -> list[Way]:
    """Each graph alone, and prompts by the wide one before answers by the other, where there are two."""
    own = bundle.decoder.precision
    graphs = [own, *(name for name in bundle.decoder.graphs if name != own)]
    both = [Way(other, own) for other in graphs[1:]] if "decode" in phases else []
    return [Way(name, name) for name in graphs] + both


def _lead(
    graph: Graph, laid: Sequence[Laid], features: Sequence[Kept], answered: Iterator[Answered]
) -> dict[Phase, Found]:
    """Lead a graph along the reference's answers."""
    divergences: dict[Phase, list[NDArray[np.float64]]] = {phase: [] for phase in PHASES}
    agreements: dict[Phase, list[NDArray[np.bool_]]] = {phase: [] for phase in PHASES}
    places: dict[Phase, slice] = {"prefill": slice(0, 1), "decode": slice(1, None)}
    for one, rows, answer in zip(laid, features, answered, strict=True):
        exact = answer.logits.read()
        logits = graph.led(Asked(one.prompt, rows.read()), answer.tokens)
        with np.errstate(invalid="ignore"):  # a graph that gives no numbers is reported as such
            divergence = kl_divergence(exact, logits)
        same = exact.argmax(-1) == logits.argmax(-1)
        for phase, place in places.items():
            divergences[phase].append(divergence[place])
            agreements[phase].append(same[place])
    return {phase: _found(np.concatenate(divergences[phase]), np.concatenate(agreements[phase])) for phase in PHASES}


def _found(divergences: NDArray[np.float64], same: NDArray[np.bool_]) -> Found:
    if not len(divergences):
        return Found(None, None, 0.0, 0)
    if not np.isfinite(divergences).all():
        return Found(None, None, float(same.mean()), len(same))
    # Rounding leaves a little less than nothing where both are the same.
    return Found(max(0.0, float(divergences.mean())), max(0.0, float(divergences.max())), float(same.mean()), len(same))


def _counted(items: Iterable[T], advance: Callable[[int], None]) -> Iterator[T]:
    for item in items:
        yield item
        advance(1)
