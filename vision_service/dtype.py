"""The type that the encoder computes in, where no setting names one.

The device and the bundle decide, never a timing: replicas on processors of one kind choose alike. Decision 24 has what
bfloat16 costs and gains.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from serving.bundle_error import BundleError

_ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables that keep oneDNN from instructions that the processor has."""


class Choice(NamedTuple):
    """A type to compute in.

    Attributes:
        dtype: The type.
        reason: Why, for the log.
    """

    dtype: torch.dtype
    reason: str


def choose_dtype(name: str, device: torch.device, folder: Path) -> Choice:
    """The type that a setting names; `auto`: bfloat16 if the device multiplies it and the weights are stored in it.

    Args:
        name: auto, float32, bfloat16, float16 or int8.
        device: Where the encoder runs.
        folder: A bundle's `vision` directory.

    Raises:
        BundleError: The weights cannot be read.
    """
    if name != "auto":
        return Choice(getattr(torch, name), "the setting names it")
    if not multiplies_bfloat16(device):
        return Choice(torch.float32, "the device has no instructions that multiply bfloat16")
    stored = stored_types(folder)
    if stored != {"BF16"}:
        return Choice(torch.float32, f"the bundle's weights are stored as {', '.join(sorted(stored))}")
    return Choice(torch.bfloat16, "the bundle's weights are stored in it and the device multiplies it")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16, so that it is faster than float32.

    On a CPU these are AVX-512 BF16 and AMX, unless a variable limits what oneDNN uses. Without them oneDNN computes
    bfloat16 all the same, by way of float32 and more slowly. Other processors than x86 are not asked.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or any(os.environ.get(name) for name in _ONEDNN_LIMITS):
        return False
    # They are not public: PyTorch is pinned, and a build for another processor may lack them.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return torch.backends.mkldnn.is_available() and any(probe() for probe in probes if probe is not None)  # type: ignore[no-untyped-call]


def stored_types(folder: Path) -> set[str]:
    """The floating types of a bundle's encoder weights, by safetensors' names.

    Args:
        folder: The bundle's `vision` directory. Only the header of its weights is read.

    Raises:
        BundleError: The weights are missing or damaged.
    """
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            types = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118  # it is a file
    except (OSError, SafetensorError) as error:
        raise BundleError(f"The encoder in {folder} cannot be read ({error}): export the bundle again.") from error
    return {name for name in types if name.startswith(("F", "BF"))}
