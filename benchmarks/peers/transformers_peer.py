"""transformers in float32 as a peer, for reference. Loads a text twin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from benchmarks.peers.protocol import Options, serve


class TransformersPeer:
    """A causal language model.

    Args:
        options: Options of the model.
    """

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int]) -> None:
        """See `Model`."""
        self._model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """See `Model`. The prompts have equal lengths, so no padding is needed."""
        ids = torch.tensor(prompts)
        whole = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        return int(whole.shape[0] * (whole.shape[1] - ids.shape[1]))


if __name__ == "__main__":
    serve(TransformersPeer)
