"""OpenVINO GenAI as a peer: its continuous batching, for one stream as for many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.protocol import Options, serve


class OpenVinoPeer:
    """A model exported by optimum-intel.

    Args:
        options: Options of the model.
    """

    def __init__(self, options: Options) -> None:
        self.versions = {"openvino": openvino.__version__, "openvino_genai": openvino_genai.__version__}
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs = options.streams
        # Its default of 256 splits prompts, which is slower if no other request waits.
        scheduler.max_num_batched_tokens = options.streams * options.context
        scheduler.enable_prefix_caching = False
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            options.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": options.threads}
        )
        self._numbers = itertools.count()

    def prefill(self, prompt: Sequence[int]) -> None:
        """See `TextModel`. One token is sampled, at negligible cost."""
        self.generate([prompt], 1)

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
        """See `Model`."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        handles = [
            self._pipeline.add_request(next(self._numbers), openvino.Tensor(np.asarray([prompt], np.int64)), config)
            for prompt in prompts
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return sum(len(handle.read_all()[0].generated_ids) for handle in handles)


if __name__ == "__main__":
    serve(OpenVinoPeer)
