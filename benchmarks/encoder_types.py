"""The accuracy of encoder types: the divergence of the next-token distribution with their features.

The reference is the float32 graph with float32 features. The same graph with other features shows the divergence of the
encoder's type alone; the quantized graphs with both show what the type adds to their own divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name

import exporter
from benchmarks.divergence import Divergence, Reference, ask
from exporter.divergence import Asked, Graph

TYPES = ("bfloat16", "float16", "int8")


@dataclass(frozen=True)
class EncoderRow:
    """One line of the table.

    Attributes:
        pictures: their kind.
        graph: the decoder's precision.
        encoder: type in which the encoder computes.
        cosine: least cosine between a feature row and that of float32.
        divergence: from the float32 graph with float32 features.
    """

    pictures: str
    graph: str
    encoder: str
    cosine: float
    divergence: Divergence


def measure_encoder(
    checkpoint: Path,
    work: Path,
    *,
    kinds: Mapping[str, Sequence[bytes]],
    questions: Sequence[str],
    types: Sequence[str],
    steps: int,
    threads: int = 0,
    operators: bool = True,
) -> Iterator[EncoderRow]:
    """Export at fp32 and INT4, encode in each type, and compare.

    Args:
        checkpoint: its directory.
        work: an empty directory for the bundles.
        kinds: image files, by their kind.
        questions: the questions about each picture.
        types: encoder types besides float32.
        steps: tokens of an answer.
        threads: threads of the decoder; 0: the library's default.
        operators: whether our own operators may be used.
    """
    exact = exporter.export(checkpoint, work / "fp32", precision="fp32", measure=False)
    quantized = exporter.export(checkpoint, work / "int4", calibrate=False, measure=False)
    graphs = {"fp32": Graph(exact, "fp32", threads=threads)}
    for name in quantized.decoder.graphs:
        graphs[name] = Graph(quantized, name, threads=threads, operators=operators)
    for kind, pictures in kinds.items():
        plain = ask(exact, pictures, questions)
        reference = Reference(exact, plain, steps=steps, threads=threads)
        others = {name: ask(exact, pictures, questions, dtype=getattr(torch, name)) for name in types}
        for graph, computed in graphs.items():
            for encoder, asked in {"float32": plain, **others}.items():
                if (graph, encoder) != ("fp32", "float32"):  # the reference itself
                    yield EncoderRow(kind, graph, encoder, _cosine(plain, asked), reference.compare(computed, asked))


def _cosine(plain: Sequence[Asked], asked: Sequence[Asked]) -> float:
    """The least cosine of all rows."""

    def of(one: Asked, other: Asked) -> float:
        exact, rounded = (torch.from_numpy(prompt.features).double() for prompt in (one, other))
        return float(F.cosine_similarity(exact, rounded, dim=-1).min())

    return min(of(one, other) for one, other in zip(plain, asked, strict=True))
