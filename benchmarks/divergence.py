"""How far a bundle's graphs are from the float32 model, on prompts with pictures.

The float32 graph answers greedily; every other graph is then led along the same tokens, so that all of them are asked
the same questions. At each position the distributions over the vocabulary are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from decoder_service import chat
from decoder_service.engine.kv import KvCache
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.positions import media_spans, mrope_positions
from decoder_service.engine.runner import Runner
from decoder_service.operators import library
from decoder_service.prompt import Prompt, PromptBuilder
from serving.bundle import Bundle
from serving.media import media_digest
from vision_service import media
from vision_service.encoder import Encoder
from vision_service.preprocess import Limits, Preprocessor
from vision_service.video import VideoLimits

_MOST_TOKENS = 16_384  # of a prompt and its answer; memory is taken as it is written
_LIMITS = Limits(1 << 26, VideoLimits(seconds=600, frames=10_000, sampled=768, pixels=1 << 24), 1 << 16)


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt with its picture.

    Attributes:
        prompt: ids and grids.
        features: float32 [rows, (1 + L) · hidden].
    """

    prompt: Prompt
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Divergence:
    """What one graph makes of the prompts.

    Attributes:
        mean: mean Kullback-Leibler divergence of the graph's distribution from float32's, in nats.
        largest: the largest at any position.
        agreement: share of the positions where both have the same likeliest token.
        positions: how many were compared.
    """

    mean: float
    largest: float
    agreement: float
    positions: int


def ask(
    bundle: Bundle, pictures: Sequence[bytes], questions: Sequence[str], *, dtype: torch.dtype = torch.float32
) -> list[Asked]:
    """Lay out every question about every picture, with the bundle's own encoder.

    Args:
        bundle: any precision: the encoder is the same.
        pictures: image files.
        questions: what is asked about each of them.
        dtype: what the encoder computes in.
    """
    preprocessor = Preprocessor(bundle, _LIMITS)
    encoder = Encoder.load(bundle.vision_dir, device=torch.device("cpu"), dtype=dtype)
    prompts = PromptBuilder.load(bundle.decoder_dir, bundle.tokens)
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


class Graph:
    """One decoder graph of a bundle, computed as the batch engine computes it.

    Args:
        bundle: has the graph.
        precision: which one.
        threads: of the computation; 0 leaves it to the library.
        operators: whether our own may be used, where this processor can.
    """

    def __init__(self, bundle: Bundle, precision: str, *, threads: int = 0, operators: bool = True) -> None:
        text, vision = bundle.text, bundle.vision
        self._name = precision
        self._image_token, self._merge_size = bundle.tokens.image, vision.spatial_merge_size
        self._runner = Runner(
            bundle.decoder_dir / "embedding.onnx",
            threads=threads,
            layers=text.num_hidden_layers,
            head_size=text.head_dim,
            operators=library() if operators else None,
        )
        self._runner.load(precision, bundle.graph_path(precision))
        self._runner.use(
            KvCache(
                layers=text.num_hidden_layers,
                rows=1,
                heads=text.num_key_value_heads,
                length=_MOST_TOKENS,
                width=text.head_dim,
                dtype=self._runner.cache_dtype,
            )
        )

    def greedy(self, asked: Asked, steps: int) -> tuple[list[int], NDArray[np.float32]]:
        """Answer, whatever ends the turn.

        Returns:
            The tokens [steps], and the logits before each of them and after the last [steps + 1, vocabulary].
        """
        first, after = self._read(asked)
        logits, tokens = [first], []
        for step in range(steps):
            tokens.append(int(logits[-1].argmax()))
            logits.append(self._say(tokens[-1], after + step))
        return tokens, np.stack(logits)

    def led(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits before each of `tokens` and after the last [len(tokens) + 1, vocabulary]."""
        first, after = self._read(asked)
        return np.stack([first, *(self._say(token, after + step) for step, token in enumerate(tokens))])

    def _read(self, asked: Asked) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits after the prompt; and how many tokens it has, with the position of the next, [2]."""
        ids, grids = asked.prompt.engine_token_ids, asked.prompt.grids
        spans = media_spans(ids, grids, (), image_token=self._image_token, merge_size=self._merge_size)
        positions = mrope_positions(ids.size, spans)
        piece = Piece(0, 0, ids, asked.features, positions[:, :-1])
        return np.asarray(self._runner.run(self._name, piece=piece)[0]), np.array([ids.size, positions[0, -1]])

    def _say(self, token: int, after: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits after a token more, behind so many, at that position."""
        length, position = after[:1], after[1:]
        return np.asarray(self._runner.run(self._name, step=Step(0, length, np.array([token], np.int32), position))[0])


class Reference:
    """The float32 answers, and the logits on the way to them.

    Args:
        bundle: exported at fp32.
        asked: the prompts.
        steps: tokens of each answer.
        threads: of the computation; 0 leaves it to the library.
    """

    def __init__(self, bundle: Bundle, asked: Sequence[Asked], *, steps: int, threads: int = 0) -> None:
        graph = Graph(bundle, "fp32", threads=threads)
        self._asked = asked
        self._answers = [graph.greedy(prompt, steps) for prompt in asked]

    def compare(self, graph: Graph, asked: Sequence[Asked] | None = None) -> Divergence:
        """Lead `graph` along the same answers.

        Args:
            graph: any precision.
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


def kl_divergence(exact: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ p · log(p / q) of the softmax of two rows of logits [n, vocabulary], in nats [n]."""
    log_p, log_q = _log_softmax(exact), _log_softmax(other)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
