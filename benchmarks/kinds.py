"""Pictures of several kinds, the same each time, for what depends on what is shown."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo.evaluate import held_out_cases

_SIZE = (320, 256)
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def scene(index: int) -> Image.Image:
    """Shapes on a plain ground: a scene that the demo model was not trained on."""
    return held_out_cases("describe", index + 1)[index].images[0]


def photograph(index: int) -> Image.Image:
    """Noise as smooth as a photograph: amplitudes fall with the frequency, and colours vary less than brightness."""
    width, height = _SIZE
    frequency = np.hypot(np.fft.fftfreq(height)[:, np.newaxis], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / width
    grain = np.fft.rfft2(_draw(index).standard_normal((4, height, width))) / frequency**1.4
    brightness, *colours = np.fft.irfft2(grain, (height, width))
    values = np.stack([brightness + 0.4 * colour for colour in colours], axis=-1)
    values = (values - values.mean()) / values.std()
    return Image.fromarray((128 + 50 * values).clip(0, 255).astype(np.uint8))


def page(index: int) -> Image.Image:
    """Lines of made-up words in black on white."""
    draw, image = _draw(index), Image.new("RGB", _SIZE, "white")
    font = ImageFont.load_default(13)
    for top in range(12, _SIZE[1] - 20, 18):
        words = ("".join(draw.choice(_LETTERS, draw.integers(2, 9))) for _ in range(7))
        ImageDraw.Draw(image).text((12, top), " ".join(words), "black", font)
    return image


def noise(index: int) -> Image.Image:
    """Every pixel drawn alone."""
    return Image.fromarray(_draw(index).integers(0, 256, (*_SIZE[::-1], 3), np.uint8))


KINDS: dict[str, Callable[[int], Image.Image]] = {
    "scene": scene,
    "photograph-like": photograph,
    "page of text": page,
    "noise": noise,
}


def draw_kinds(count: int) -> dict[str, list[bytes]]:
    """So many pictures of each kind, as PNG files."""
    return {name: [_png(make(index)) for index in range(count)] for name, make in KINDS.items()}


def _draw(index: int) -> np.random.Generator:
    return np.random.default_rng(index)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
