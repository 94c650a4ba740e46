"""llama.cpp as a peer, with llama-cpp-python's low-level interface: many sequences in one batch, as in its server."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import llama_cpp
import numpy as np

from benchmarks.peers.protocol import Options, serve

_BATCH = 2048  # llama.cpp's own default: longer prompts are split
_Row = tuple[int, int, int, bool]


class LlamaCppPeer:
    """A GGUF file in one context with a sequence for each stream.

    Args:
        options: Options of the model.
    """

    def __init__(self, options: Options) -> None:
        self.versions = {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            options.model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"{options.model} is no GGUF file that this llama.cpp can read")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = options.streams * options.context
        params.n_seq_max = options.streams
        params.n_batch = _BATCH
        params.n_threads = params.n_threads_batch = options.threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ValueError("llama.cpp made no context: is there memory enough?")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)

    def prefill(self, prompt: Sequence[int]) -> None:
        """See `Model`."""
        self._forget()
        self._read([prompt])

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """See `Model`."""
        self._forget()
        tokens = self._read(prompts)
        for step in range(new_tokens - 1):
            rows = [(token, len(prompts[n]) + step, n, True) for n, token in enumerate(tokens)]
            tokens = self._decode(rows)
        return new_tokens * len(prompts)

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def _read(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Prefill prompts; returns the likeliest first token of each."""
        rows = [
            (token, position, n, position == len(prompt) - 1)
            for n, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        firsts = []
        for begin in range(0, len(rows), _BATCH):
            firsts += self._decode(rows[begin : begin + _BATCH])
        return firsts

    def _decode(self, rows: Sequence[_Row]) -> list[int]:
        """Run a batch of (token, position, sequence, whether logits are needed); returns the likeliest tokens."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        return [self._likeliest(i) for i, row in enumerate(rows) if row[3]]

    def _likeliest(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())


if __name__ == "__main__":
    serve(LlamaCppPeer)
