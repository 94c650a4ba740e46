"""What all checks of `tests/families/run` have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.measuring import unmeasured
from tests.threads import one_thread


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost, and calibrate only where a test says so."""
    with unmeasured():
        yield


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, all the more beside others."""
    with one_thread():
        yield
