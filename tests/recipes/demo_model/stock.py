"""The stock preprocessing of a published Qwen3-VL, with the demo's settings."""

from __future__ import annotations

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from recipes.demo_model.config import IMAGE_PREPROCESSOR


def image_processor() -> Qwen2VLImageProcessorPil:
    """On Pillow."""
    settings = {name: value for name, value in IMAGE_PREPROCESSOR.items() if not name.endswith(("_class", "_type"))}
    return Qwen2VLImageProcessorPil(**settings)
