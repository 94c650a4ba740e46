"""The operators, where this processor can run them."""

from __future__ import annotations

import functools

import pytest

from vision_service.operators import Operators, OperatorsError


@functools.cache
def _missing() -> str | None:
    """Why they cannot be used here."""
    try:
        Operators()
    except OperatorsError as error:
        return str(error)
    return None


needs_operators = pytest.mark.skipif(_missing() is not None, reason=f"the encoder's operators: {_missing()}")
