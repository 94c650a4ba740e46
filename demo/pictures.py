"""The example pictures: always the same pixels, with a question and the answer that is true of each.

`python -m demo.pictures [DIRECTORY]` writes them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from demo.scenes import Rgb, Shape, draw_shape

EXAMPLES = Path(__file__).with_name("examples")

_RGB: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "blue": (30, 90, 210),
    "yellow": (246, 205, 40),
    "green": (40, 150, 70),
    "purple": (128, 40, 160),
    "orange": (245, 140, 20),
}


@dataclass(frozen=True)
class Picture:
    """An example picture: its file name, what it shows, and what to ask."""

    name: str
    size: tuple[int, int]  # width, height in pixels
    background: Rgb
    shapes: tuple[tuple[str, str, float, float, float], ...]  # colour, kind, x, y, radius in pixels
    question: str
    answer: str

    def draw(self) -> Image.Image:
        """The picture itself."""
        image = Image.new("RGB", self.size, self.background)
        for colour, kind, x, y, radius in self.shapes:
            draw_shape(image, Shape(colour, kind, x, y, radius, 0.0, _RGB[colour]))
        return image


PICTURES = (
    Picture(
        "scene.png",
        (320, 240),
        (245, 243, 238),
        (("red", "circle", 70, 64, 40), ("blue", "square", 244, 120, 38), ("yellow", "star", 80, 190, 40)),
        "What is in the picture?",
        "A red circle, a blue square and a yellow star.",
    ),
    Picture(
        "tall.png",
        (160, 400),
        (52, 58, 70),
        (("green", "triangle", 78, 70, 44), ("orange", "circle", 82, 330, 40)),
        "How many shapes are there?",
        "There are two shapes.",
    ),
    Picture(
        "wide.png",
        (420, 150),
        (225, 232, 240),
        (("purple", "triangle", 66, 76, 40), ("green", "square", 210, 74, 34), ("red", "star", 356, 78, 42)),
        "Where is the red star?",
        "The red star is on the right.",
    ),
)


def write_pictures(directory: Path = EXAMPLES) -> list[Path]:
    """Write every example picture as a PNG file and return their paths; the first is the one to show."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in PICTURES:
        path = directory / picture.name
        picture.draw().save(path)
        paths.append(path)
    return paths


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.pictures", description="Write the example pictures.")
    parser.add_argument("directory", type=Path, nargs="?", default=EXAMPLES)
    for path, picture in zip(write_pictures(parser.parse_args().directory), PICTURES, strict=True):
        tqdm.write(f"{path}: {picture.question} {picture.answer}")


if __name__ == "__main__":
    main()
