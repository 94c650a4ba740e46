"""The checkpoints and conversations of the parity run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

SHAPES: dict[str, dict[str, Any]] = {
    # Crops of the published size, with which the processor counts tokens right.
    "published crops": {
        "vision": {"image_size": 448, "crop_size": 448, "hidden_size": 36, "num_attention_heads": 3},
        "context": 4096,
        "original": 512,
    },
    "small crops": {"context": 1024},
    "odd crops and other heads": {
        "vision": {"image_size": 70, "crop_size": 70, "num_hidden_layers": 5, "intermediate_size": 61},
        "layers": 2,
        "hidden": 96,
        "heads": 6,
        "kv_heads": 3,
        "rank": 3,
        "alpha": 12,
        "dynamic_hd": 12,
        "context": 1024,
        "original": 128,
    },
    "one layer, other features": {
        "vision": {"feature_layer": -3, "num_hidden_layers": 4, "hidden_act": "gelu", "image_size": 112},
        "layers": 1,
        "kv_heads": 4,
        "rank": 17,
        "alpha": 5,
        "dynamic_hd": 2,
        "context": 1024,
        "original": 1024,
    },
}
"""Arguments of `make_phi4`."""


class Picture(NamedTuple):
    """An image of noise, in edges of a crop.

    Attributes:
        width: Its width.
        height: Its height.
        seed: Of the noise.
    """

    width: float
    height: float
    seed: int = 0

    def size(self, crop: int) -> tuple[int, int]:
        """Width and height in pixels."""
        return max(1, round(self.width * crop)), max(1, round(self.height * crop))


Turn = tuple[str, Sequence[str | Picture]]

CONVERSATIONS: dict[str, list[Turn]] = {
    "text alone": [("user", ["What is the colour of the sky?"])],
    "system and text": [("system", ["You are brief."]), ("user", ["Hello, ", "in two parts."])],
    "text that looks like images": [("user", ["What is <|image_1|>, and <|image_2|>?"])],
    "one image": [("user", [Picture(1.2, 0.8), "Describe."])],
    "several images": [("user", [Picture(1.2, 0.8), "and", Picture(0.5, 1.0, 1), Picture(2.3, 2.4, 2), "Compare."])],
    "whole crops": [("user", [Picture(2.0, 1.0, 3), "Describe."])],
    "a tall image": [("user", [Picture(0.4, 4.1, 4), "Describe."])],
    "a wide image": [("user", [Picture(5.3, 0.5, 5), "Describe."])],
    "a tiny image": [("user", [Picture(0.07, 0.05, 6), "Describe."])],
    "a large image": [("user", [Picture(4.7, 3.1, 7), "Describe."])],
    "an image after the text": [("user", ["Look: ", Picture(0.9, 1.0, 8)])],
    "a second turn with a new image": [
        ("user", [Picture(1.2, 0.8), "Describe."]),
        ("assistant", ["A picture."]),
        ("user", [Picture(0.6, 1.7, 9), "And this?"]),
    ],
    "a second turn with the first image": [
        ("user", ["Hello."]),
        ("assistant", ["Hello!"]),
        ("user", ["And this?", Picture(1.0, 0.7, 10)]),
    ],
    "a second turn in text": [
        ("user", [Picture(1.2, 0.8), "Describe."]),
        ("assistant", ["A picture."]),
        ("user", ["Sure?"]),
    ],
}
TOKENS = 24
