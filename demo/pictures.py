"""The example pictures and the example clip, with questions and correct answers.

`python -m demo.pictures [DIRECTORY]` writes them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from demo.clips import Clip, Event
from demo.scenes import Rgb, Shape, draw_shape
from demo.video import encode_clip

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
    """An example picture: its file name and content."""

    name: str
    size: tuple[int, int]  # width, height in pixels
    background: Rgb
    shapes: tuple[tuple[str, str, float, float, float], ...] = ()  # colour, kind, x, y, radius in pixels
    word: str = ""  # printed in the middle

    def draw(self) -> Image.Image:
        """The picture itself."""
        image = Image.new("RGB", self.size, self.background)
        width, height = self.size
        font = ImageFont.load_default(height // 3)
        ImageDraw.Draw(image).text((width / 2, height / 2), self.word, (20, 20, 20), font, anchor="mm")
        for colour, kind, x, y, radius in self.shapes:
            draw_shape(image, Shape(colour, kind, x, y, radius, 0.0, _RGB[colour]))
        return image


PICTURES = (
    Picture(
        "scene.png",
        (320, 240),
        (245, 243, 238),
        (("red", "circle", 70, 64, 40), ("blue", "square", 244, 120, 38), ("yellow", "star", 80, 190, 40)),
    ),
    Picture(
        "tall.png",
        (160, 400),
        (52, 58, 70),
        (("green", "triangle", 78, 70, 44), ("orange", "circle", 82, 330, 40)),
    ),
    Picture(
        "wide.png",
        (420, 150),
        (225, 232, 240),
        (("purple", "triangle", 66, 76, 40), ("green", "square", 210, 74, 34), ("red", "star", 356, 78, 42)),
    ),
    Picture("sign.png", (300, 180), (250, 214, 90), word="OPEN"),
)


CLIP = "clip.mp4"


@dataclass(frozen=True)
class Conversation:
    """Consecutive questions about one or more example files, each with its answer."""

    files: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


CONVERSATIONS = (
    Conversation(
        ("scene.png",),
        (
            ("What is in the picture?", "A red circle, a blue square and a yellow star."),
            ("Where is the star?", "The star is at the bottom left."),
            ("And the square?", "The square is on the right."),
        ),
    ),
    Conversation(("tall.png",), (("How many shapes are there?", "There are two shapes."),)),
    Conversation(
        ("tall.png", "wide.png"), (("Which picture has the red star?", "The second picture has the red star."),)
    ),
    Conversation(("sign.png",), (("What does the sign say?", 'It says "OPEN".'),)),
    Conversation((CLIP,), (("What happens in the video?", "A blue circle moves to the right."),)),
)


def draw_example_clip() -> Clip:
    """A blue circle that crosses the picture, over a red square that stays."""
    width, height = 240, 160
    return Clip(
        width,
        height,
        Image.new("RGB", (width, height), (245, 243, 238)),
        still=(Shape("red", "square", 120, 124, 22, 0.0, _RGB["red"]),),
        actor=Shape("blue", "circle", 40, 50, 26, 0.0, _RGB["blue"]),
        end=(200, 50),
        event=Event.RIGHT,
        moment=0.5,
        jpeg_quality=None,
    )


def write_examples(directory: Path = EXAMPLES) -> list[Path]:
    """Write every example file and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture in PICTURES:
        path = directory / picture.name
        picture.draw().save(path)
        paths.append(path)
    clip = directory / CLIP
    clip.write_bytes(encode_clip(draw_example_clip(), seconds=2.0))
    return [*paths, clip]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.pictures", description="Write the example files.")
    parser.add_argument("directory", type=Path, nargs="?", default=EXAMPLES)
    for path in write_examples(parser.parse_args().directory):
        tqdm.write(str(path))


if __name__ == "__main__":
    main()
