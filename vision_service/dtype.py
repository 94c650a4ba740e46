"""Selects the type in which the encoder computes, if no setting does.

The selection depends on the device and the bundle, not on timings, so that replicas on equal processors select the same
type. Decision 24 has the accuracy and speed of bfloat16, decision 26 those of int8, and how the export measures them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from serving.bundle_error import BundleError, BundleProblem
from vision_service.operators import find_operators

if TYPE_CHECKING:
    from serving.bundle import EncoderType  # needs pydantic, which a GPU test machine may lack

MOST_DIVERGENCE = 0.005
"""Highest divergence, in nats of the next-token distribution, of a type that `auto` selects.

It equals the divergence of the INT4 decoder of the demo model on its training pictures, and a quarter of that on
others: the error of such a type is not distinguishable from that of the INT4 decoder. bfloat16 and int8 were at 0.0009
at most; int8 without smoothing of outliers was above the limit on every kind of picture.
"""

_ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that limit the instruction sets that oneDNN uses."""


class Choice(NamedTuple):
    """A selected type.

    Attributes:
        dtype: The type.
        reason: The reason, for the log.
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
    """Select the type for a setting.

    `auto` on a CPU is the fastest type that the processor has instructions for and whose measured divergence is small.
    On a GPU, and without measurements, it is bfloat16 if the device multiplies it and the weights are stored in it.

    Args:
        name: auto, float32, bfloat16, float16 or int8.
        device: Device of the encoder.
        folder: A bundle's `vision` directory.
        measured: The measured accuracy of types, from the bundle.
        operators: Whether our own operators may be used.

    Raises:
        BundleError: The weights cannot be read.
    """
    if name != "auto":
        return Choice(getattr(torch, name), "the setting selects it")
    if not multiplies_bfloat16(device):
        return Choice(torch.float32, "the device has no instructions that multiply bfloat16")
    if measured is not None and device.type == "cpu":
        return _by_cost(measured, device, operators=operators)
    stored = stored_types(folder)
    if stored != {"BF16"}:
        return Choice(torch.float32, f"the bundle's weights are stored as {', '.join(sorted(stored))}")
    return Choice(torch.bfloat16, "the bundle's weights are stored in it and the device multiplies it")


def _by_cost(measured: Mapping[str, EncoderType], device: torch.device, *, operators: bool) -> Choice:
    """The fastest type within the limit, on a CPU that multiplies bfloat16."""
    passed_over = []
    for name in ("int8", "bfloat16"):  # the fastest first
        cost = measured.get(name)
        if name == "int8" and not (operators and find_operators(device) is not None):
            passed_over.append("int8 has no operators that are fast here")
        elif cost is None:
            passed_over.append(f"{name} was not measured")
        elif cost.divergence > MOST_DIVERGENCE:
            passed_over.append(f"{name} has a measured divergence of {_nats(cost)}")
        else:
            return Choice(
                getattr(torch, name),
                "; ".join([f"its measured divergence is {_nats(cost)}, and it is fast here", *passed_over]),
            )
    return Choice(torch.float32, "; ".join(passed_over))


def _nats(cost: EncoderType) -> str:
    return f"{cost.divergence:.1e} nats of at most {MOST_DIVERGENCE:.1e}"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16, so that it is faster than float32.

    On a CPU these are AVX-512 BF16 and AMX, unless an environment variable limits oneDNN. Without them oneDNN computes
    bfloat16 via float32, and more slowly. On processors other than x86 the result is False.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or any(os.environ.get(name) for name in _ONEDNN_LIMITS):
        return False
    # Not public: PyTorch is pinned, and a build for another processor may lack them.
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
            types = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118  # a file, not a mapping
    except (OSError, SafetensorError) as error:
        raise BundleError(BundleProblem.ENCODER_UNREADABLE, folder=folder, error=error) from error
    return {name for name in types if name.startswith(("F", "BF"))}
