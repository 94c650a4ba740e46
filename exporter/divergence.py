"""What a decoder graph says behind features, and how far two such distributions are from each other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.engine.batching.kv import KvCache
from decoder_service.engine.model import Piece, Step
from decoder_service.engine.onnx.operators import KvDtype, library
from decoder_service.engine.onnx.runner import Runner
from decoder_service.families.family import Prompt
from serving.bundle import Bundle

_MOST_TOKENS = 16_384


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt with its picture.

    Attributes:
        prompt: ids and positions.
        features: float32 [rows, (1 + L) · hidden].
    """

    prompt: Prompt
    features: NDArray[np.float32]


class Graph:
    """One decoder graph of a bundle, computed as the batch engine computes it.

    Args:
        bundle: has the graph.
        precision: which one.
        prefill: the one that reads prompts; None: the same.
        threads: of the computation; 0 leaves it to the library.
        operators: whether our own may be used, where this processor can.
        kv_dtype: how our own attention stores keys and values.
        length: most tokens of a prompt and its answer; memory is taken as it is written.
        repack: whether float32 weights may be copied into an order that is multiplied faster.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        *,
        prefill: str | None = None,
        threads: int = 0,
        operators: bool = True,
        kv_dtype: KvDtype = "int8",
        length: int = _MOST_TOKENS,
        repack: bool = True,
    ) -> None:
        text = bundle.text
        self._name = precision
        self._prefill = prefill or precision
        self._runner = Runner(
            bundle.decoder_dir / "embedding.onnx",
            threads=threads,
            layers=text.num_hidden_layers,
            head_size=text.head_dim,
            operators=library() if operators else None,
            kv_dtype=kv_dtype,
            repack=repack,
        )
        for name in dict.fromkeys((precision, self._prefill)):
            self._runner.load(name, bundle.graph_path(name))
        self._shape = self._runner.shape
        self._runner.use(
            KvCache(
                layers=text.num_hidden_layers,
                slots=1,
                heads=text.num_key_value_heads,
                length=length,
                width=self._runner.cache_width,
                dtype=self._runner.cache_dtype,
            ).buffers
        )

    def greedy(self, asked: Asked, steps: int, *, stop: Collection[int] = ()) -> tuple[list[int], NDArray[np.float32]]:
        """Answer.

        Args:
            asked: the prompt.
            steps: tokens that are written, unless one of `stop` comes before.
            stop: tokens that end the answer and are not part of it; none: whatever ends the turn, it goes on.

        Returns:
            The tokens [steps], and the logits before each of them and after the last [steps + 1, vocabulary].
        """
        logits, tokens = [self._read(asked, ())], list[int]()
        for _ in range(steps):
            token = int(logits[-1].argmax())
            if token in stop:
                break
            tokens.append(token)
            logits.append(self._say(asked, tokens))
        return tokens, np.stack(logits)

    def led(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits before each of `tokens` and after the last [len(tokens) + 1, vocabulary]."""
        logits = [self._read(asked, ())]
        logits += [self._say(asked, tokens[: index + 1]) for index in range(len(tokens))]
        return np.stack(logits)

    def _read(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the prompt and tokens of the answer, all computed by the graph that prefills."""
        ids = np.append(asked.prompt.engine_token_ids, np.array(tokens, np.int32))
        after = asked.prompt.positions[:, -1:] + np.arange(len(tokens))
        positions = np.concatenate([asked.prompt.positions[:, :-1], after], axis=1)
        rows = self._shape.rotations(positions, long=self._shape.is_long(ids.size))
        piece = Piece(0, 0, ids, asked.features, rows, adapted=self._adapted(asked))
        return np.asarray(self._runner.run(self._prefill, piece=piece)[0])

    def _say(self, asked: Asked, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits after the last of the answer's tokens, those before being computed."""
        before = asked.prompt.engine_token_ids.size + len(tokens) - 1
        long = self._shape.is_long(before + 1)
        if long != self._shape.is_long(before):
            return self._read(asked, tokens)
        position = self._shape.rotations(asked.prompt.positions[:1, -1] + len(tokens) - 1, long=long)
        step = Step(0, np.array([before]), np.array(tokens[-1:], np.int32), position, np.array([self._adapted(asked)]))
        return np.asarray(self._runner.run(self._name, step=step)[0])

    def _adapted(self, asked: Asked) -> bool:
        return self._shape.has_adapter and len(asked.prompt.media) > 0


def kl_divergence(exact: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Σ p · log(p / q) of the softmax of two rows of logits [n, vocabulary], in nats [n]."""
    log_p, log_q = _log_softmax(exact), _log_softmax(other)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
