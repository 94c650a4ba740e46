"""Loads the weights of a bundle's encoder into transformers' model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from serving.bundle_error import BundleError, BundleProblem

M = TypeVar("M", bound=nn.Module)


def load_model(
    folder: Path,
    build: Callable[[dict[str, Any]], M],
    *,
    device: torch.device,
    dtype: torch.dtype,
    unused: str = "(?!)",
) -> M:
    """Load transformers' model from a bundle's `vision` directory.

    It is built without storage and then gets the file's tensors one by one, so that memory holds the weights once.

    Args:
        folder: Holds config.json and model.safetensors.
        build: Makes the model from the content of config.json.
        device: Device of the encoder.
        dtype: Type in which it computes.
        unused: Pattern of names; the file may have tensors with such names that the model does not have.

    Raises:
        BundleError: A file is missing or damaged, or the weights are not those of the config.
    """
    try:
        stored = json.loads((folder / "config.json").read_bytes())
        with torch.device("meta"):
            model = build(stored)
        wanted = set(model.state_dict())
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            weights = {
                name: file.get_tensor(name).to(device, dtype, copy=True)
                for name in file.keys()  # noqa: SIM118  # a file, not a mapping
                if name in wanted or not re.match(unused, name)
            }
        model.load_state_dict(weights, strict=True, assign=True)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BundleError(BundleProblem.ENCODER_UNREADABLE, folder=folder, error=error) from error
    except RuntimeError as error:  # load_state_dict lists the missing names, one per line
        raise BundleError(BundleProblem.ENCODER_WEIGHTS, folder=folder, error=_one_line(error)) from error
    model.requires_grad_(False)
    model.train(False)
    return model


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
