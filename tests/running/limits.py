"""How long a test may take."""

from __future__ import annotations

import os

import pytest


def seconds_of(item: pytest.Item) -> float:
    """The seconds after which pytest-timeout ends a test; 0 where it does not."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    option = item.config.getoption("timeout", None)
    if option is None:
        option = os.environ.get("PYTEST_TIMEOUT") or item.config.getini("timeout")
    return float(option or 0)
