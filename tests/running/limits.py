"""How long a test may take."""

from __future__ import annotations

import pytest


def seconds_of(item: pytest.Item) -> float:
    """The seconds after which pytest-timeout ends a test; 0 where it does not."""
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    option = item.config.getoption("timeout", None)
    return float(option if option is not None else item.config.getini("timeout") or 0)
