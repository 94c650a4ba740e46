"""The architecture, a Qwen3-VL of about four million parameters, and the files beside its weights."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3VLConfig

from demo.config import (
    CONTEXT_LENGTH,
    LONGEST_EDGE,
    MAX_FRAMES,
    MERGE_SIZE,
    MIN_FRAMES,
    PATCH_SIZE,
    SHORTEST_EDGE,
    TEMPORAL_PATCH_SIZE,
)

IMAGE_PREPROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": SHORTEST_EDGE, "longest_edge": LONGEST_EDGE},
    "patch_size": PATCH_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "merge_size": MERGE_SIZE,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
# For videos the limits are on frames x height x width, in pixels over the whole clip.
VIDEO_PREPROCESSOR: dict[str, Any] = {
    "size": {"shortest_edge": 8 * 128 * 128, "longest_edge": 8 * 144 * 144},
    "patch_size": PATCH_SIZE,
    "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    "merge_size": MERGE_SIZE,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    # A clip of two seconds or more is seen as eight frames, in four temporal patches of 16 to 20 merged tokens.
    "fps": 4.0,
    "min_frames": MIN_FRAMES,
    "max_frames": MAX_FRAMES,
    "processor_class": "Qwen3VLProcessor",
    "video_processor_type": "Qwen3VLVideoProcessor",
}


def model_config(vocab: dict[str, int], *, tiny: bool = False) -> Qwen3VLConfig:
    """The architecture, for a vocabulary that maps tokens to ids; `tiny` is for tests of the recipe itself."""
    # Hidden sizes are multiples of 32, the block of the INT4 format; several query heads share a key/value head.
    text: dict[str, Any] = {
        "hidden_size": 64 if tiny else 192,
        "intermediate_size": 96 if tiny else 384,
        "num_hidden_layers": 4 if tiny else 6,
        "num_attention_heads": 2 if tiny else 6,
        "num_key_value_heads": 1 if tiny else 2,
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }
    vision: dict[str, Any] = {
        "depth": 4,
        "hidden_size": 32 if tiny else 128,
        "intermediate_size": 64 if tiny else 512,
        "num_heads": 2 if tiny else 4,
        "deepstack_visual_indexes": [1, 2, 3],
    }
    return Qwen3VLConfig(
        architectures=["Qwen3VLForConditionalGeneration"],
        text_config={
            "vocab_size": len(vocab),
            "max_position_embeddings": CONTEXT_LENGTH,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.02,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": vocab["<|endoftext|>"],
            "eos_token_id": vocab["<|im_end|>"],
            "pad_token_id": vocab["<|endoftext|>"],
            **text,
        },
        vision_config={
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "in_channels": 3,
            "hidden_act": "gelu_pytorch_tanh",
            # A 16 x 16 grid of learned positions, interpolated to the image's own grid.
            "num_position_embeddings": 256,
            "out_hidden_size": text["hidden_size"],
            "initializer_range": 0.02,
            **vision,
        },
        image_token_id=vocab["<|image_pad|>"],
        video_token_id=vocab["<|video_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
        tie_word_embeddings=True,
    )
