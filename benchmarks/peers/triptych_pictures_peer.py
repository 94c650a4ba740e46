"""Triptych as a peer with pictures: `triptych up`, through the gateway. `VISION_*` and `DECODER_*` variables apply."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from benchmarks.peers.protocol import Options, serve
from benchmarks.peers.server import ServedModel, free_port
from serving.bundle import Bundle

_BUDGET = "VISION_DEFAULT_MAX_PIXELS", "VISION_DEFAULT_MAX_VIDEO_PIXELS", "VISION_DEFAULT_MAX_FRAMES"


def opened(options: Options) -> ServedModel:
    """The whole system on a bundle. Answers have no stop tokens, and pictures the checkpoint's own limits."""
    port = free_port()
    ports = ["--grpc-port", "0", "--http-port", str(port)]
    threads = dict.fromkeys(("VISION_THREADS", "DECODER_THREADS"), str(options.threads))
    ends = Bundle.open(Path(options.model)).tokens.eos
    return ServedModel(
        [sys.executable, "-m", "triptych_cli", "up", "--bundle", options.model, *ports],
        port,
        health="/healthz",
        versions={name: importlib.metadata.version(name) for name in ("triptych", "torch", "onnxruntime")},
        environment={**dict.fromkeys(_BUDGET, "published"), **threads},
        fields={"logit_bias": dict.fromkeys(map(str, ends), -100)},
        streams=options.streams,
    )


if __name__ == "__main__":
    serve(opened)
