"""The model families of the decoder service, by their names in bundles."""

from __future__ import annotations

from collections.abc import Callable

from decoder_service.families.family import Family
from decoder_service.families.phi4_multimodal.prompt_layout import Phi4Multimodal
from decoder_service.families.qwen2_5_vl.prompt_layout import Qwen25VL
from decoder_service.families.qwen3.prompt_layout import Qwen3
from decoder_service.families.qwen3_vl.prompt_layout import Qwen3VL
from serving.bundle import Bundle

_FAMILIES: dict[str, Callable[[Bundle], Family]] = {
    "phi4_multimodal": Phi4Multimodal.of,
    "qwen2_5_vl": Qwen25VL.of,
    "qwen3": Qwen3.of,
    "qwen3_vl": Qwen3VL.of,
}


def family_of(bundle: Bundle) -> Family:
    """Make the family of a bundle's model.

    Raises:
        ValueError: The decoder service does not support it.
    """
    make = _FAMILIES.get(bundle.model.family)
    if make is None:
        raise ValueError(f"the decoder service knows no family {bundle.model.family!r}; it knows {sorted(_FAMILIES)}")
    return make(bundle)
