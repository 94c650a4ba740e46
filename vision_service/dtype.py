"""The type that the encoder computes in, where no setting names one.

The device and the bundle decide, never a timing: replicas on processors of one kind choose alike. Decision 24 has what
bfloat16 costs and gains, decision 26 what int8 does and how the export measures both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from serving.bundle_error import BundleError
from vision_service.operators import find_operators

if TYPE_CHECKING:
    from serving.bundle import EncoderType  # it needs pydantic, which a machine that only checks its GPU may lack

MOST_DIVERGENCE = 0.005
"""Nats of the next token's distribution that a type may cost for `auto` to take it.

It is what the INT4 decoder costs the demo model on the pictures it was trained on, and a quarter of that on others: a
type within it does not add what one could tell from the decoder's own rounding. bfloat16 and int8 were at 0.0009 at
most; int8 with outliers that are not evened out was above it on every kind of picture.
"""

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


def choose_dtype(
    name: str,
    device: torch.device,
    folder: Path,
    *,
    measured: Mapping[str, EncoderType] | None = None,
    operators: bool = True,
) -> Choice:
    """The type that a setting names.

    `auto` on a CPU is the fastest type that the processor has instructions for and that was measured to cost little. On
    a GPU, and where nothing was measured, it is bfloat16 if the device multiplies it and the weights are stored in it.

    Args:
        name: auto, float32, bfloat16, float16 or int8.
        device: Where the encoder runs.
        folder: A bundle's `vision` directory.
        measured: What the bundle says that types cost.
        operators: Whether our own may be used.

    Raises:
        BundleError: The weights cannot be read.
    """
    if name != "auto":
        return Choice(getattr(torch, name), "the setting names it")
    if not multiplies_bfloat16(device):
        return Choice(torch.float32, "the device has no instructions that multiply bfloat16")
    if measured is not None and device.type == "cpu":
        return _by_cost(measured, device, operators=operators)
    stored = stored_types(folder)
    if stored != {"BF16"}:
        return Choice(torch.float32, f"the bundle's weights are stored as {', '.join(sorted(stored))}")
    return Choice(torch.bfloat16, "the bundle's weights are stored in it and the device multiplies it")


def _by_cost(measured: Mapping[str, EncoderType], device: torch.device, *, operators: bool) -> Choice:
    """The fastest type within the bound, on a CPU that multiplies bfloat16."""
    passed_over = []
    for name in ("int8", "bfloat16"):  # the fastest first
        cost = measured.get(name)
        if name == "int8" and not (operators and find_operators(device) is not None):
            passed_over.append("int8 has no operators that are fast here")
        elif cost is None:
            passed_over.append(f"{name} was not measured")
        elif cost.divergence > MOST_DIVERGENCE:
            passed_over.append(f"{name} was measured to cost {_nats(cost)}")
        else:
            return Choice(
                getattr(torch, name),
                "; ".join([f"it was measured to cost {_nats(cost)}, and is fast here", *passed_over]),
            )
    return Choice(torch.float32, "; ".join(passed_over))


def _nats(cost: EncoderType) -> str:
    return f"{cost.divergence:.1e} nats of at most {MOST_DIVERGENCE:.1e}"


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
