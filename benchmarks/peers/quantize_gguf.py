"""Quantize a GGUF file with llama.cpp's own code: `python -m benchmarks.peers.quantize_gguf FROM TO TYPE`."""

from __future__ import annotations

import argparse
import ctypes
import sys

import llama_cpp

TYPES = {"q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def main() -> int:
    """Quantize a file; returns 0."""
    parser = argparse.ArgumentParser(description="Quantize a GGUF file.")
    parser.add_argument("source", help="a GGUF file in f16, bf16 or f32")
    parser.add_argument("target")
    parser.add_argument("type", choices=TYPES)
    options = parser.parse_args()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = TYPES[options.type]
    code = llama_cpp.llama_model_quantize(options.source.encode(), options.target.encode(), ctypes.byref(params))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
