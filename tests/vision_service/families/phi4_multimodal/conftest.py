"""Small random encoders of the family, in transformers and as bundles."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalImageEmbedding

from serving.bundle import Bundle
from tests.vision_service.families.phi4_multimodal.torchvision_free import image_processor

VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "crop_size": 56,
    "patch_size": 14,
}
HIDDEN = 40


@dataclass(frozen=True)
class Made:
    """A random encoder.

    Attributes:
        bundle: Its bundle, without a decoder.
        model: The same in transformers.
        processor: transformers' image processor.
    """

    bundle: Bundle
    model: Any
    processor: Any

    def features(self, shown: Any, *, masked: bool = True) -> list[torch.Tensor]:
        """The features of what the processor made, for each image."""
        sizes, masks = shown["image_sizes"], shown["image_attention_mask"]
        return [
            self._features(pixels[None], size, mask[None] if masked else torch.ones_like(mask)[None])
            for pixels, size, mask in zip(shown["image_pixel_values"], sizes, masks, strict=True)
        ]

    def _features(self, pixels: torch.Tensor, size: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The rows that transformers puts in the place of an image's tokens, as many as there are."""
        grown = self.model.img_projection_down.register_forward_hook(
            lambda module, args, out: rows.append(out.reshape(-1, out.shape[-1]))
        )
        rows: list[torch.Tensor] = []
        try:
            with torch.no_grad():
                count = self._count(size, mask)
                ids = torch.full((1, count), self.model.config.vision_config.image_token_id)
                embeds = torch.zeros(1, count, self.model.config.hidden_size)
                merged = self.model(ids, embeds, pixels, size[None], mask)
        finally:
            grown.remove()
        assert torch.equal(merged[0], rows[0])
        return rows[0]

    def _count(self, size: torch.Tensor, mask: torch.Tensor) -> int:
        """Tokens of an image by its mask."""
        crop = self.model.crop_size
        rows, columns = int(size[0]) // crop, int(size[1]) // crop
        seen = mask[0, 1 : rows * columns + 1, 0::2, 0::2]
        edge = seen.shape[-1]
        seen = seen.reshape(rows, columns, edge, edge).transpose(1, 2).reshape(rows * edge, columns * edge)
        return int(seen.sum() + seen[:, 0].sum()) + 1 + edge * (edge + 1)


def make_model(hidden: int = HIDDEN, **changes: Any) -> Phi4MultimodalImageEmbedding:
    """A random image embedding, drawn wide enough that everything in it shows in the features."""
    config = Phi4MultimodalConfig(hidden_size=hidden, num_attention_heads=4, vision_config={**VISION, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Phi4MultimodalImageEmbedding(config)
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.shape[0] > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
            else:  # norms, biases and separators, which otherwise are ones and zeros
                parameter.data += torch.empty_like(parameter).uniform_(-0.4, 0.4)
    # With `sdpa`, transformers 5.23 gives complete crops no mask, and then its attention is causal: `is_causal` of the
    # module is true. Eager attention, and `sdpa` where a crop has padding, are bidirectional, as the model was trained.
    parts: Any = model
    parts.img_processor.set_attn_implementation("eager")
    return model.eval().requires_grad_(False)


def write_bundle(folder: Path, model: Phi4MultimodalImageEmbedding, **settings: Any) -> Bundle:
    """A bundle with the encoder and no decoder, as the exporter writes it."""
    config: Any = model.config
    vision = config.vision_config
    (folder / "vision").mkdir(parents=True)
    stored = {"vision_config": vision.to_dict(), "hidden_size": config.hidden_size}
    (folder / "vision" / "config.json").write_text(json.dumps(stored))
    size = {"height": vision.crop_size, "width": vision.crop_size}
    (folder / "vision" / "preprocessor_config.json").write_text(
        json.dumps({"size": size, "patch_size": vision.patch_size, **settings})
    )
    save_file(model.state_dict(), folder / "vision" / "model.safetensors")
    text = {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    shape = {
        "depth": vision.num_hidden_layers,
        "hidden_size": vision.hidden_size,
        "patch_size": vision.patch_size,
        "temporal_patch_size": 1,
        "spatial_merge_size": 2,
        "in_channels": 3,
        "crop_size": vision.crop_size,
    }
    description = {
        "model": {"id": "random", "family": "phi4_multimodal", "parameters": 1},
        "text": text,
        "vision": shape,
        "tokens": {"eos": [1], "pad": 0, "image": 300},
        "encoder_fingerprint": "0" * 64,
    }
    return Bundle.unfinished(folder, description)


def make(folder: Path, *, hidden: int = HIDDEN, dynamic_hd: int = 9, **changes: Any) -> Made:
    """A random encoder of a shape, its bundle and transformers' processor."""
    model = make_model(hidden, **changes)
    vision: Any = model.config.vision_config
    size = {"height": vision.crop_size, "width": vision.crop_size}
    processor = image_processor(size=size, patch_size=vision.patch_size, dynamic_hd=dynamic_hd)
    return Made(write_bundle(folder, model, dynamic_hd=dynamic_hd), model, processor)


@pytest.fixture(scope="session")
def phi4(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Crops of 4 x 4 patches, at most nine of them."""
    return make(tmp_path_factory.mktemp("phi4") / "bundle")
