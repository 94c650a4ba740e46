"""The vision service's registry of families."""

from __future__ import annotations

import pytest

from serving.bundle import Bundle, BundleError
from vision_service.families import registry


def test_the_family_of_a_bundle(bundle: Bundle) -> None:
    """Its name is looked up."""
    assert registry.family_of(bundle) is registry.FAMILIES[bundle.model.family]


def test_a_family_without_an_encoder(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of a family that is not registered is refused with its name and those that are."""
    monkeypatch.setattr(registry, "FAMILIES", {"other": registry.FAMILIES[bundle.model.family]})
    with pytest.raises(BundleError, match=rf"family {bundle.model.family}, for which .* \(it encodes for other\)"):
        registry.family_of(bundle)
