"""Muon for the hidden matrices, AdamW for everything else, and how their rates change.

Muon's iterations are a seventh of a step or more, so ranks share the matrices out and give each other the results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from recipes.demo_model.ranks import Ranks

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

    def step(self, ranks: Ranks, step: int, progress: float, looking: float, talking: float) -> None:
        """One update; `progress` is the share of looking, or of talking, that is over. All ranks have equal gradients.

        `looking` and `talking` are the shares of the rates that hold for what looks and for what talks.
        """
        for kernel, matrix in self._kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.view_as(matrix)
            kernel.grad = None
        learning = [(matrix, owner) for matrix, owner in self._owned(ranks) if matrix.grad is not None]
        for matrix, owner in learning:
            if owner != ranks.rank:
                matrix.grad = None
        factor = rate_factor(step, progress)
        for optimizer, rate in ((self._muon, _MUON_RATE), (self._adam, _ADAM_RATE)):
            for group, share in zip(optimizer.param_groups, (looking, talking), strict=True):
                group["lr"] = rate * factor * share
            optimizer.step()  # type: ignore[no-untyped-call]  # Muon has no types yet
            optimizer.zero_grad(set_to_none=True)
        if learning:
            ranks.spread(*zip(*learning, strict=True))

    def _owned(self, ranks: Ranks) -> list[tuple[nn.Parameter, int]]:
        """Muon's matrices, each with the rank that computes its updates; what looks is shared out, and what talks."""
        owned: list[tuple[nn.Parameter, int]] = []
        for group in self._muon.param_groups:
            matrices = group["params"]
            owned += zip(matrices, ranks.shared_out([m.numel() * min(m.shape) for m in matrices]), strict=True)
        return owned

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """Both states. All ranks call it together, for each knows the momentum of its own matrices alone."""
        momenta = []
        for matrix, owner in self._owned(ranks):
            momentum = self._muon.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
            momenta.append((momentum, owner))
        ranks.spread(*zip(*momenta, strict=True))
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
