"""Exports of tests neither calibrate nor measure what the encoder's types cost: it takes seconds.

Few tests look at either, and those name what they want.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Exports in this process leave the measurement out, and calibrate only where they are told to."""
    from exporter import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure_apart", lambda root, progress: None)
        patch.setattr(pipeline, "CALIBRATED", False)
        yield
