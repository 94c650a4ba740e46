"""The divergence of a bundle's graphs from the float32 model, on prompts with pictures.

The float32 graph decodes greedily; every other graph then gets the same tokens (teacher forcing). At each position the
distributions over the vocabulary are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from decoder_service import chat
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from exporter.divergence import Asked, Graph, kl_divergence
from serving.bundle import Bundle
from serving.media import media_digest
from vision_service import media
from vision_service.clip import VideoLimits
from vision_service.families import registry as vision_families
from vision_service.family import PreprocessLimits

_LIMITS = PreprocessLimits(1 << 26, VideoLimits(seconds=600, frames=10_000, sampled=768, pixels=1 << 24), 1 << 16)


@dataclass(frozen=True)
class Divergence:
    """The divergence of one graph.

    Attributes:
        mean: mean Kullback-Leibler divergence of the graph's distribution from float32's, in nats.
        largest: the largest at any position.
        agreement: share of the positions where both have the same likeliest token.
        positions: number of compared positions.
    """

    mean: float
    largest: float
    agreement: float
    positions: int


def ask(
    bundle: Bundle, pictures: Sequence[bytes], questions: Sequence[str], *, dtype: torch.dtype = torch.float32
) -> list[Asked]:
    """Make a prompt for every question about every picture, with features of the bundle's encoder.

    Args:
        bundle: of any precision, since the encoder is the same.
        pictures: image files.
        questions: the questions about each picture.
        dtype: type in which the encoder computes.
    """
    family = vision_families.family_of(bundle)
    preprocessor = family.make_preprocessor(bundle, _LIMITS)
    encoder = family.load_encoder(
        bundle.vision_dir, device=torch.device("cpu"), dtype=dtype, out_dtype=torch.float32, operators=True
    )
    prompts = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    asked = []
    for picture in pictures:
        medium = chat.Medium(chat.MediaKind.IMAGE, media_digest(picture))
        prepared = preprocessor.prepare("image", picture, media.Options())
        features = encoder.encode([prepared])[0].numpy()
        layout = chat.Layout(medium, prepared.grid, len(features), ())
        for question in questions:
            rendered = prompts.render([chat.Message(chat.Role.USER, (medium, chat.Text(question)))])
            asked.append(Asked(prompts.expand(rendered, [layout]), features))
    return asked


class Reference:
    """The answers of the float32 graph, with their logits.

    Args:
        bundle: exported at fp32.
        asked: the prompts.
        steps: tokens of each answer.
        threads: number of threads; 0: the library's default.
    """

    def __init__(self, bundle: Bundle, asked: Sequence[Asked], *, steps: int, threads: int = 0) -> None:
        graph = Graph(bundle, "fp32", threads=threads)
        self._asked = asked
        self._answers = [graph.greedy(prompt, steps) for prompt in asked]

    def compare(self, graph: Graph, asked: Sequence[Asked] | None = None) -> Divergence:
        """Compare `graph` on the same answers.

        Args:
            graph: a graph of any precision.
            asked: the same prompts with other features; None takes the reference's own.
        """
        divergences: list[NDArray[np.float64]] = []
        agreements: list[NDArray[np.bool_]] = []
        for prompt, (tokens, exact) in zip(asked or self._asked, self._answers, strict=True):
            other = graph.led(prompt, tokens)
            divergences.append(kl_divergence(exact, other))
            agreements.append(exact.argmax(-1) == other.argmax(-1))
        values = np.concatenate(divergences)
        return Divergence(
            mean=float(values.mean()),
            largest=float(values.max()),
            agreement=float(np.concatenate(agreements).mean()),
            positions=len(values),
        )
