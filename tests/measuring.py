"""Exports of tests do not measure what the encoder's types cost: it takes seconds, and few tests look at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Exports in this process leave the measurement out."""
    from exporter import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "measure_apart", lambda root, progress: None)
        yield
