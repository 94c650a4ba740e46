"""The supported families, by their names in bundles. A new family adds a line here."""

from __future__ import annotations

from collections.abc import Mapping

from serving.bundle import Bundle
from serving.bundle_error import BundleError, BundleProblem
from vision_service.families.phi4_multimodal.family import PHI4_MULTIMODAL
from vision_service.families.qwen2_5_vl.family import QWEN2_5_VL
from vision_service.families.qwen3_vl.family import QWEN3_VL
from vision_service.family import Family

FAMILIES: Mapping[str, Family] = {
    "phi4_multimodal": PHI4_MULTIMODAL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
}


def family_of(bundle: Bundle) -> Family:
    """The family of a bundle's model.

    Raises:
        BundleError: The model has no encoder, or the vision service does not encode for this family.
    """
    if not bundle.has_encoder:
        raise BundleError(BundleProblem.NO_ENCODER, root=bundle.root, model=bundle.model.id)
    name = bundle.model.family
    if name not in FAMILIES:
        raise BundleError(BundleProblem.FAMILY_UNKNOWN, root=bundle.root, family=name, known=", ".join(FAMILIES))
    return FAMILIES[name]
