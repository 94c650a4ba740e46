"""The published files: a config of `Phi4MMForCausalLM`, and tensors by the names of its code, with adapters inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "phi4mm"
_DROPPED = ("architectures", "auto_map", "embd_layer", "audio_processor", "img_processor", "speech_lora", "vision_lora")
_BASE = ".base_layer."
"""In the names of matrices with adapters."""
_NAMES = {
    ".image_embed.glb_GN": ".image_embed.global_img_feature_extensor",
    ".image_embed.sub_GN": ".image_embed.sub_img_feature_extensor",
    ".image_embed.img_projection.0.": ".image_embed.img_projection_up.",
    ".image_embed.img_projection.2.": ".image_embed.img_projection_down.",
}


def to_present(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as transformers' class has it.

    The published code has the sizes of the image encoder in itself, and they are the class's defaults; where the file
    has a `vision_config`, that counts.

    Raises:
        LookupError: it is not such a config.
    """
    image = config["embd_layer"]["image_embd_layer"]
    vision = {"crop_size": image["crop_size"], **config.get("vision_config", {})}
    kept = {key: value for key, value in config.items() if key not in _DROPPED}
    return {**kept, "model_type": "phi4_multimodal", "vision_config": vision}


def present_name(name: str) -> str:
    """A tensor's name in transformers' class."""
    name = name.replace(_BASE, ".")
    for published, present in _NAMES.items():
        name = name.replace(published, present)
    return name


def published_name(name: str) -> str:
    """What the published files call a tensor of transformers' class, but for the mark of a matrix with adapters."""
    for published, present in _NAMES.items():
        name = name.replace(present, published)
    return name
