"""How far a bundle's graphs are from the float32 model, on prompts with pictures.

The float32 graph answers greedily; every other graph is then led along the same tokens, so that all of them are asked
the same questions. At each position the distributions over the vocabulary are compared.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime_genai as og
import torch
from numpy.typing import NDArray

from decoder_service import chat
from decoder_service.prompt import Prompt, PromptBuilder
from serving.bundle import Bundle
from serving.media import media_digest
from vision_service import media
from vision_service.encoder import Encoder
from vision_service.preprocess import Limits, Preprocessor
from vision_service.video import VideoLimits

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


def ask(bundle: Bundle, pictures: Sequence[bytes], questions: Sequence[str]) -> list[Asked]:
    """Lay out every question about every picture, with the bundle's own encoder in float32.

    Args:
        bundle: any precision: the encoder is the same.
        pictures: image files.
        questions: what is asked about each of them.
    """
    preprocessor = Preprocessor(bundle, _LIMITS)
    encoder = Encoder.load(bundle.vision_dir, device=torch.device("cpu"), dtype=torch.float32)
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
    """One decoder graph of a bundle in onnxruntime-genai.

    Args:
        bundle: has the graph.
        precision: which one.
        threads: of the computation; 0 leaves it to the library.
    """

    def __init__(self, bundle: Bundle, precision: str, *, threads: int = 0) -> None:
        # Exact integer products also on processors without VNNI, where the fast ones may saturate.
        session: dict[str, object] = {"session.x64quantprecision": "1"}
        if threads:
            session["intra_op_num_threads"] = threads
        filename = bundle.graph_path(precision).relative_to(bundle.decoder_dir).as_posix()
        decoder = {"filename": filename, "session_options": session}
        config = og.Config(str(bundle.decoder_dir))
        config.overlay(json.dumps({"model": {"decoder": decoder}}))
        self._model = og.Model(config)

    def greedy(self, asked: Asked, steps: int) -> tuple[list[int], NDArray[np.float32]]:
        """Answer, whatever ends the turn.

        Returns:
            The tokens [steps], and the logits before each of them and after the last [steps + 1, vocabulary].
        """
        generator = self._prefilled(asked, steps)
        tokens: list[int] = []
        logits = [_logits(generator)]
        for _ in range(steps):
            tokens.append(int(logits[-1].argmax()))
            logits.append(_appended(generator, tokens[-1]))
        return tokens, np.stack(logits)

    def led(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits before each of `tokens` and after the last [len(tokens) + 1, vocabulary]."""
        generator = self._prefilled(asked, len(tokens))
        return np.stack([_logits(generator), *(_appended(generator, token) for token in tokens)])

    def _prefilled(self, asked: Asked, steps: int) -> og.Generator:
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(asked.prompt.token_ids) + steps + 1)
        generator = og.Generator(self._model, parameters)
        inputs = og.NamedTensors()
        inputs["input_ids"] = asked.prompt.engine_token_ids[np.newaxis]
        inputs["pixel_values"] = asked.features
        inputs["image_grid_thw"] = asked.prompt.grids
        inputs["num_image_tokens"] = np.array([len(asked.features)], np.int64)
        generator.set_inputs(inputs)
        return generator


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

    def compare(self, graph: Graph) -> Divergence:
        """Lead `graph` along the same answers."""
        divergences: list[NDArray[np.float64]] = []
        agreements: list[NDArray[np.bool_]] = []
        for prompt, (tokens, exact) in zip(self._asked, self._answers, strict=True):
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


def _logits(generator: og.Generator) -> NDArray[np.float32]:
    # A copy: the library's own buffer is written again by the next step.
    return np.array(generator.get_logits(), np.float32).reshape(-1)


def _appended(generator: og.Generator, token: int) -> NDArray[np.float32]:
    generator.append_tokens(np.array([[token]], np.int32))
    return _logits(generator)
