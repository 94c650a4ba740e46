"""`triptych evaluate` of a model with an adapter: the reference is a bundle at fp32."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.errors import EvaluationError
from evaluation.reference import BundleReference, open_reference
from serving.bundle import Bundle


def test_a_checkpoint_is_no_reference(native: Path, exact: Bundle) -> None:
    """Transformers alone would answer questions about pictures without the adapter."""
    with pytest.raises(EvaluationError, match="exported with --precision fp32"):
        open_reference(str(native), exact)
    assert isinstance(open_reference(str(exact.root), exact), BundleReference)
