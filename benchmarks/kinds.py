"""Generated pictures of several kinds, the same each time, for measurements that depend on the content."""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from demo.evaluate import held_out_cases
from exporter.pictures import noise, page, photograph


def scene(index: int) -> Image.Image:
    """Shapes on a plain ground: a scene that the demo model was not trained on."""
    return held_out_cases("describe", index + 1)[index].images[0]


KINDS: dict[str, Callable[[int], Image.Image]] = {
    "scene": scene,
    "photograph-like": photograph,
    "page of text": page,
    "noise": noise,
}


def draw_kinds(count: int) -> dict[str, list[bytes]]:
    """Draw `count` pictures of each kind, as PNG files."""
    return {name: [_png(make(index)) for index in range(count)] for name, make in KINDS.items()}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
