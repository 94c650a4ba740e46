"""Which tests share a worker where the run has several (`pytest -n`): those of one directory, which share fixtures."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the tests of each directory of `tests/` into one group."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        directory = item.path.relative_to(config.rootpath / "tests").parts[0]
        item.add_marker(pytest.mark.xdist_group(directory))
