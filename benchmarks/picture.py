"""Results as a picture: one panel for each curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.errors import BenchError
from benchmarks.report import Curve


def check() -> None:
    """Check before the measurement that a picture can be drawn.

    Raises:
        BenchError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415  # only needed for pictures
    except ImportError as error:
        raise BenchError("a picture needs matplotlib: pip install 'triptych[dev]', or leave --picture out") from error


def draw(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Write the picture; the file's suffix selects the format (`.png`, `.svg`).

    Raises:
        BenchError: It cannot be written, or the format is unknown.
    """
    check()
    from matplotlib.figure import Figure  # noqa: PLC0415  # without pyplot: no window and no global state

    figure = Figure(figsize=(5.0 * len(curves), 3.8), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for number, curve in enumerate(curves, 1):
        axes = figure.add_subplot(1, len(curves), number, title=curve.title, xlabel=curve.x, ylabel=curve.y)
        axes.plot([x for x, _ in curve.points], [y for _, y in curve.points], marker="o")
        axes.set_ylim(0, 1.1 * max(y for _, y in curve.points))
        axes.set_xticks([x for x, _ in curve.points])
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise BenchError(f"the picture {path} cannot be written: {error}") from error
