"""Muon for the hidden matrices, AdamW for everything else, and how their rates change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_MUON_RATE, _ADAM_RATE = 0.02, 2e-3
_WARM_UP = 40  # steps
_COOL_DOWN = 0.7  # share of looking, and of talking, over which the rates fall to zero, at its end


class Optimizers:
    """Two optimizers that step as one; what looks (the vision tower and its heads) and what talks may go slower."""

    def __init__(self, model: nn.Module) -> None:
        # What looks, then what talks.
        hidden: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        rest: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        # A kernel that meets every pixel once is a matrix of another shape; here with that matrix, in the same memory.
        self._kernels: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, parameter in model.named_parameters():
            talks = "language_model" in name
            if parameter.ndim > 2:
                self._kernels.append((parameter, nn.Parameter(parameter.data.view(len(parameter), -1))))
                hidden[talks].append(self._kernels[-1][1])
            # Embeddings are matrices too, but their rows are learnt one by one.
            elif parameter.ndim == 2 and not any(part in name for part in ("embed", "head")):
                hidden[talks].append(parameter)
            else:
                rest[talks].append(parameter)
        self._muon = torch.optim.Muon(_groups(hidden), lr=_MUON_RATE, momentum=0.95, weight_decay=0.01, ns_steps=5)
        self._adam = torch.optim.AdamW(_groups(rest), lr=_ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, step: int, progress: float, looking: float = 1.0, talking: float = 1.0) -> None:
        """One update; `progress` is the share of looking, or of talking, that is over.

        `looking` and `talking` are the shares of the rates that hold for what looks and for what talks.
        """
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.view_as(matrix)
            kernel.grad = None
        factor = rate_factor(step, progress)
        for optimizer, rate in ((self._muon, _MUON_RATE), (self._adam, _ADAM_RATE)):
            for group, share in zip(optimizer.param_groups, (looking, talking), strict=True):
                group["lr"] = rate * factor * share
            optimizer.step()  # type: ignore[no-untyped-call]  # Muon has no types yet
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Both states."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take both states up again."""
        self._muon.load_state_dict(state["muon"])
        self._adam.load_state_dict(state["adam"])


def _groups(parts: tuple[list[nn.Parameter], list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": part} for part in parts]


def rate_factor(step: int, progress: float) -> float:
    """Learning rates' share of their maximum: a short rise, a plateau, and a straight fall to zero."""
    return min((step + 1) / _WARM_UP, 1.0, max(0.0, (1.0 - progress) / _COOL_DOWN))
