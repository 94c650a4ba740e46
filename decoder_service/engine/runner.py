"""The graphs on ONNX Runtime, over one cache of keys and values.

A slot's row is bound as past and as present at once, so ONNX Runtime writes new keys and values in place and copies
nothing. Each request's length is the number of ones in its row of `attention_mask`. A prompt is read in chunks of any
size in its own row; a step of several answers takes neighbouring rows, each of its own length. `GroupQueryAttention`
of ONNX Runtime 1.32 refuses to read several prompts at once behind a past, so chunks run one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from decoder_service.engine.kv import KvCache
from decoder_service.engine.model import Piece, Step
from serving.cores import lacks_vnni

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


class Runner:
    """Reads chunks and makes steps.

    Args:
        embedding: Path of the graph that turns ids and features into embeddings.
        threads: Threads for one operator.
        layers: Layers of the model.
    """

    def __init__(self, embedding: Path, *, threads: int, layers: int) -> None:
        self._threads = threads
        self._embedding = onnxruntime.InferenceSession(embedding, _options(1), _PROVIDERS)
        self.feature_width = int(self._embedding.get_outputs()[0].shape[-1])
        self._inputs = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self._outputs = [f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._cache: KvCache | None = None
        self._bindings: dict[tuple[str, int, int], Any] = {}

    def load(self, name: str, path: Path) -> None:
        """Load a graph. All have the same inputs, outputs and cache; the first one says what they are."""
        session = self._sessions[name] = onnxruntime.InferenceSession(path, _options(self._threads), _PROVIDERS)
        if len(self._sessions) > 1:
            return
        kinds = {value.name: value.type for value in session.get_inputs()}
        self.cache_dtype = np.dtype(_NUMPY_TYPES[kinds[self._inputs[0]]])
        logits = session.get_outputs()[0]
        self.vocabulary = int(logits.shape[-1])
        # Older bundles have graphs that give the logits of all positions.
        self._last_only = logits.shape[1] == 1

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs."""
        return tuple(self._sessions)

    def use(self, cache: KvCache) -> None:
        """Bind the graphs to a cache of keys and values."""
        self._cache = cache
        self._bindings.clear()

    def read(self, graph: str, piece: Piece) -> NDArray[np.float32]:
        """Compute a chunk; see `Model.read`."""
        mask = np.ones((1, piece.start + piece.token_ids.size), np.int64)
        embeddings = self._embed(piece.token_ids[None], piece.features)
        return self._run(graph, piece.row, embeddings, mask, piece.positions[:, None])

    def step(self, graph: str, step: Step) -> NDArray[np.float32]:
        """Compute a step; see `Model.step`."""
        lengths = step.lengths
        mask = (np.arange(int(lengths.max()) + 1) <= lengths[:, None]).astype(np.int64)
        # The ids of an answer are text, also where the model draws a media token: there are no features for it.
        embeddings = self._embed(step.token_ids[:, None], np.empty((0, self.feature_width), np.float32))
        positions = np.broadcast_to(step.positions[None, :, None], (3, lengths.size, 1))
        return self._run(graph, step.row, embeddings, mask, positions)

    def _embed(self, token_ids: NDArray[np.int32], features: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = {"input_ids": token_ids.astype(np.int64), "image_features": features}
        (embeddings,) = self._embedding.run(["inputs_embeds"], feed)
        return np.asarray(embeddings)

    def _run(
        self,
        graph: str,
        row: int,
        embeddings: NDArray[np.float32],
        mask: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        count, size, _ = embeddings.shape
        logits = np.empty((count, 1 if self._last_only else size, self.vocabulary), np.float32)
        positions = np.ascontiguousarray(positions)
        binding = self._binding(graph, row, count)
        _bind(binding.bind_input, "inputs_embeds", embeddings)
        _bind(binding.bind_input, "attention_mask", mask)
        _bind(binding.bind_input, "position_ids", positions)
        _bind(binding.bind_output, "logits", logits)
        self._sessions[graph].run_with_iobinding(binding)
        return logits[:, -1]

    def _binding(self, graph: str, row: int, count: int) -> Any:
        """A binding whose keys and values are bound already: that is 144 calls for 36 layers."""
        key = (graph, row, count)
        if key not in self._bindings:
            assert self._cache is not None  # noqa: S101  # `use` comes first
            binding = self._sessions[graph].io_binding()
            for past, present, buffer in zip(self._inputs, self._outputs, self._cache.buffers, strict=True):
                rows = buffer[row : row + count]
                _bind(binding.bind_input, past, rows)
                _bind(binding.bind_output, present, rows)
            self._bindings[key] = binding
        return self._bindings[key]


_PROVIDERS = ["CPUExecutionProvider"]


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Each session has threads of its own, which would go on spinning after a run, in the way of another session's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if lacks_vnni():
        # An exact way to multiply bytes. With VNNI every way is exact, and this one slower.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _bind(bind: Any, name: str, array: NDArray[Any]) -> None:
    """Bind an array's own memory, which the caller keeps alive."""
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
