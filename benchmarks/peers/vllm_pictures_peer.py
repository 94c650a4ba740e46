"""vLLM on a CPU as a peer with pictures: `vllm serve`, in bfloat16. Loads a checkpoint; `VLLM_*` variables apply."""

from __future__ import annotations

import importlib.metadata
import json
import sys

from benchmarks.peers.protocol import Options, serve
from benchmarks.peers.server import ServedModel, free_port

_MOST_PICTURES = 16


def opened(options: Options) -> ServedModel:
    """A server of one model."""
    port = free_port()
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "dtype": "bfloat16",
        "max-model-len": options.context,
        "max-num-seqs": options.streams,
        "limit-mm-per-prompt": json.dumps({"image": _MOST_PICTURES, "video": 1}),
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ServedModel(
        # Without the last flag it encodes the largest possible picture before it starts: minutes on a CPU.
        [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", options.model, *flags, "--skip-mm-profiling"],
        port,
        health="/health",
        versions={name: importlib.metadata.version(name) for name in ("vllm", "torch")},
        environment={"VLLM_CPU_OMP_THREADS_BIND": f"0-{options.threads - 1}"},
        fields={"ignore_eos": True},
        streams=options.streams,
    )


if __name__ == "__main__":
    serve(opened)
