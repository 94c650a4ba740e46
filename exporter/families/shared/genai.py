"""What onnxruntime-genai's configuration needs beyond what its builder writes."""

from typing import Any

from .checkpoint import Checkpoint

EMBEDDING_GRAPH = "embedding.onnx"
VISION_GRAPH = "vision.onnx"
_NO_TOKEN = -1


def complete_genai_config(genai_config: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Turn the text model's configuration, in place, into that of a whole multimodal model.

    The vision graph is an identity, so that features computed elsewhere enter through `Generator.set_inputs` as
    `pixel_values`; the library then places them and computes the M-RoPE positions itself.
    """
    model = genai_config["model"]
    model["type"] = checkpoint.variant.genai_type
    # The width of the embeddings that pass between the graphs, which is what the library allocates by.
    model["decoder"]["hidden_size"] = checkpoint.feature_width
    model["embedding"] = {
        "filename": EMBEDDING_GRAPH,
        "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
        "outputs": {"inputs_embeds": "inputs_embeds"},
    }
    media, sizes = media_ids(checkpoint), {}
    if checkpoint.variant.encoder is not None:
        vision = checkpoint.vision
        sizes = {"spatial_merge_size": vision.spatial_merge_size, "patch_size": edge(vision.patch_size)}
    model["vision"] = {
        "filename": VISION_GRAPH,
        **sizes,
        # Frames are told apart by their timestamps' text, not by time positions: one step for each grid row.
        "tokens_per_second": 1.0,
        "inputs": {"pixel_values": "pixel_values", "image_grid_thw": "image_grid_thw"},
        "outputs": {"image_features": "image_features"},
    }
    model |= dict(zip(("image_token_id", "video_token_id", "vision_start_token_id"), media, strict=True))


def media_ids(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Ids of the image, video and start tokens; where there is none, no token's."""
    if checkpoint.variant.encoder is None:
        return _NO_TOKEN, _NO_TOKEN, _NO_TOKEN
    ids = checkpoint.variant.encoder.tokens(checkpoint.config)
    return ids["image"], ids.get("video", _NO_TOKEN), ids.get("vision_start", _NO_TOKEN)


def edge(size: int | list[int] | tuple[int, ...]) -> int:
    """A patch's edge: configs write it as a number or as equal numbers."""
    return int(size) if isinstance(size, int) else int(size[0])
