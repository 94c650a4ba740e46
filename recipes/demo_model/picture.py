"""The loss picture: how loss and token accuracy went over a training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen first: there may be no display


def draw_history(history: Sequence[tuple[int, float, float]], path: Path) -> None:
    """Draw (step, loss, token accuracy) as two smoothed curves."""
    steps, losses, accuracies = np.asarray(history, np.float64).reshape(-1, 3).T
    width = max(1, len(steps) // 100)
    kernel = np.ones(width) / width
    figure, left = plt.subplots(figsize=(8, 4.5))
    left.semilogy(steps[width - 1 :], np.convolve(losses, kernel, "valid"), color="tab:blue")
    left.set_xlabel("step")
    left.set_ylabel("loss", color="tab:blue")
    right = left.twinx()
    right.plot(steps[width - 1 :], np.convolve(accuracies, kernel, "valid"), color="tab:green")
    right.set_ylabel("token accuracy", color="tab:green")
    right.set_ylim(0.5, 1.0)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
