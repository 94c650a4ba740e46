"""Drawn scenes: coloured shapes on a background, and the ground truth about them.

Lengths are in pixels of the drawn image. Scenes are unambiguous: no shape overlaps
another, each centre is clearly inside one of the nine places (thirds of width and height), and two shapes of one row
are clearly left and right of each other.
"""

from __future__ import annotations

import colorsys
import io
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[int, int, int]
Floats = npt.NDArray[np.float32]
Circle = tuple[float, float, float]  # x, y, radius

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
MAX_SHAPES = 4

# Hue (degrees), saturation and value ranges. They hold the named colours of Pillow and CSS ("green" is 0,128,0 and
# "purple" 128,0,128) and leave gaps between neighbours, so that colours are unambiguous.
_HSV: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-6, 6), (0.80, 1.0), (0.72, 1.0)),
    "orange": ((22, 39), (0.85, 1.0), (0.92, 1.0)),
    "yellow": ((51, 61), (0.75, 1.0), (0.88, 1.0)),
    "green": ((95, 145), (0.65, 1.0), (0.45, 0.85)),
    "blue": ((208, 242), (0.70, 1.0), (0.60, 1.0)),
    "purple": ((270, 301), (0.60, 1.0), (0.48, 0.85)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.12)),
    "white": ((0, 360), (0.0, 0.03), (0.96, 1.0)),
}
# Euclidean distance in RGB that a shape keeps from the background around it.
_MIN_CONTRAST = 105.0
_RIM_CONTRAST = 70.0


@dataclass(frozen=True)
class Shape:
    """One shape: its words, and where it was drawn (centre and radius in pixels, turn in degrees)."""

    colour: str
    kind: str
    x: float
    y: float
    radius: float
    turn: float
    rgb: Rgb

    @property
    def name(self) -> str:
        """Colour and kind, as in "red circle"."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Rim:
    """An outline: its colour, or None for a darker tone of the shape's own, and its width in radii."""

    rgb: Rgb | None
    width: float

    def beside(self, fill: Rgb) -> Rgb:
        """The colour around a shape of that colour, from which it can be told."""
        red, green, blue = fill
        dark = (red // 3, green // 3, blue // 3)
        usable = (rgb for rgb in (self.rgb or dark, dark, (150, 150, 150)) if math.dist(rgb, fill) >= _RIM_CONTRAST)
        return next(usable)


@dataclass(frozen=True)
class Scene:
    """A drawn image and its shapes in reading order: by row of places, then left to right."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
    image: Image.Image

    def place(self, shape: Shape) -> str:
        """The place of a shape among the nine thirds, as in "top left"."""
        return PLACES[_third(shape.y, self.height)][_third(shape.x, self.width)]


def _third(value: float, length: int) -> int:
    return min(2, int(3 * value / length))


def draw_scene(rng: random.Random, width: int, height: int, count: int | None = None, *, alike: bool = False) -> Scene:
    """A scene of `count` shapes (1 to 4 when None; fewer if they do not fit) on a random background.

    Where they are to be `alike`, many have their kind or colour from another one.
    """
    background, samples = draw_background(rng, width, height)
    wanted = count if count is not None else rng.choice((1, 2, 2, 3, 3, 4, 4))
    circles = _layout(rng, width, height, wanted)
    shapes = [pick_shape(rng, circle, samples) for circle in circles]
    if alike:
        _take_after(rng, shapes)
    smooth, rim = rng.random() < 0.7, pick_rim(rng)
    for shape in shapes:
        draw_shape(background, shape, smooth=smooth, rim=rim)
    if rng.random() < 0.05:
        background = background.filter(ImageFilter.GaussianBlur(0.6))
    return Scene(width, height, in_reading_order(shapes, height), as_photo(rng, background))


def in_reading_order(shapes: Iterable[Shape], height: int) -> tuple[Shape, ...]:
    """Shapes by row of places in a picture so high, then left to right."""
    return tuple(sorted(shapes, key=lambda shape: (_third(shape.y, height), shape.x)))


def _take_after(rng: random.Random, shapes: list[Shape]) -> None:
    """Give shapes the kind or the colour of one before them, each two times in five."""
    for place in range(1, len(shapes)):
        kind, colour = rng.choice(shapes[:place]), rng.choice(shapes[:place])
        if rng.random() < 0.4:
            shapes[place] = replace(shapes[place], kind=kind.kind, turn=kind.turn)
        if rng.random() < 0.4:
            shapes[place] = replace(shapes[place], colour=colour.colour, rgb=colour.rgb)


def draw_crowd(rng: random.Random, width: int, height: int) -> Scene:
    """Many shapes, of which nothing is asked but what they are: one picture teaches a dozen of them."""
    image, samples = draw_background(rng, width, height)
    side = min(width, height)
    shapes: list[Shape] = []
    for _ in range(60):
        radius = max(6.0, rng.uniform(0.08, 0.19) * side)
        margin = 1.2 * radius + 1
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if all(math.hypot(x - other.x, y - other.y) > 1.25 * (radius + other.radius) + 2 for other in shapes):
            shapes.append(pick_shape(rng, (x, y, radius), samples))
    smooth, rim = rng.random() < 0.7, pick_rim(rng)
    for shape in shapes:
        draw_shape(image, shape, smooth=smooth, rim=rim)
    return Scene(width, height, tuple(shapes), as_photo(rng, image))


def redraw(rng: random.Random, scene: Scene, width: int, height: int, *, change: bool = False) -> Scene:
    """The scene in another size on a background of its own, with one shape made different if `change` is set.

    Now and then two shapes exchange their colours instead.
    """
    while True:
        image, samples = draw_background(rng, width, height)
        scale = min(width / scene.width, height / scene.height)
        shapes = [
            replace(
                shape,
                x=shape.x * width / scene.width,
                y=shape.y * height / scene.height,
                radius=shape.radius * scale,
            )
            for shape in scene.shapes
        ]
        if all(contrast(shape.rgb, samples) >= _MIN_CONTRAST for shape in shapes):
            break
    pairs = [(a, b) for a, b in combinations(range(len(shapes)), 2) if _can_exchange(shapes[a], shapes[b])]
    if change and pairs and rng.random() < 0.3:
        a, b = rng.choice(pairs)
        one, other = shapes[a], shapes[b]
        shapes[a] = replace(one, colour=other.colour, rgb=other.rgb)
        shapes[b] = replace(other, colour=one.colour, rgb=one.rgb)
    elif change:
        index = rng.randrange(len(shapes))
        old = shapes.pop(index)
        if not shapes or rng.random() < 0.75:
            new = pick_shape(rng, (old.x, old.y, old.radius), samples)
            while new.name == old.name:
                new = pick_shape(rng, (old.x, old.y, old.radius), samples)
            if rng.random() < 0.7:
                # Only the colour, or only the kind.
                new = replace(new, colour=old.colour, rgb=old.rgb) if new.kind != old.kind else new
            shapes.insert(index, new)
    rim = pick_rim(rng)
    for shape in shapes:
        draw_shape(image, shape, rim=rim)
    return Scene(width, height, tuple(shapes), as_photo(rng, image))


def _can_exchange(one: Shape, other: Shape) -> bool:
    """Whether a picture is another one once two shapes have exchanged their colours."""
    return one.kind != other.kind and one.colour != other.colour


def as_photo(rng: random.Random, image: Image.Image) -> Image.Image:
    """The image, or one time in six what JPEG makes of it."""
    return compressed(image, rng.randint(55, 95)) if rng.random() < 0.16 else image


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """What JPEG makes of the image, its colours at half the resolution."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(out).convert("RGB")


def pick_shape(rng: random.Random, circle: Circle, samples: Sequence[Rgb]) -> Shape:
    """A shape at that place, of a colour that stands out from the samples of the background."""
    usable = [colour for colour in COLOURS if contrast(_typical(colour), samples) > _MIN_CONTRAST + 25]
    colour = rng.choice(usable)
    rgb = pick_rgb(rng, colour)
    while contrast(rgb, samples) < _MIN_CONTRAST:
        colour = rng.choice(usable)
        rgb = pick_rgb(rng, colour)
    kind = rng.choice(SHAPES)
    turn = 0.0 if kind == "circle" or rng.random() < 0.5 else rng.uniform(-12, 12)
    return Shape(colour, kind, *circle, turn, rgb)


def pick_rgb(rng: random.Random, colour: str) -> Rgb:
    """A colour that goes by that name."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in _HSV[colour])
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _typical(colour: str) -> Rgb:
    hue, saturation, value = (sum(bounds) / 2 for bounds in _HSV[colour])
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def contrast(rgb: Rgb, samples: Sequence[Rgb]) -> float:
    """How far a colour is from the nearest of some samples: Euclidean distance in RGB."""
    return min(math.dist(rgb, sample) for sample in samples)


def _layout(rng: random.Random, width: int, height: int, count: int) -> list[Circle]:
    """Up to `count` circles that the rules above allow; the first one always fits."""
    side = min(width, height)
    # Very long images leave little room across: their shapes may take a larger part of the short side.
    stretch = min(1.5, max(width, height) / side) ** 0.5
    placed: list[Circle] = []
    for attempt in range(400):
        if len(placed) == count:
            break
        least, greatest = rng.choices(((0.09, 0.14), (0.13, 0.21), (0.2, 0.37)), (0.35, 0.45, 0.2))[0]
        share = rng.uniform(least, greatest)
        # The longer it takes, the smaller the shape.
        radius = max(6.0, share * side * stretch * (1 - attempt / 800))
        margin = 1.2 * radius + 1
        x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
        if _near_border(x, width) or _near_border(y, height):
            continue
        if all(_apart((x, y, radius), other, width, height) for other in placed):
            placed.append((x, y, radius))
    return placed


def _near_border(value: float, length: int) -> bool:
    """Whether a centre is too close to the line between two thirds to be called by either name."""
    return min(abs(value - length / 3), abs(value - 2 * length / 3)) < 0.045 * length


def _apart(circle: Circle, other: Circle, width: int, height: int) -> bool:
    (x, y, radius), (other_x, other_y, other_radius) = circle, other
    if math.hypot(x - other_x, y - other_y) < 1.25 * (radius + other_radius) + 2:
        return False
    return _third(y, height) != _third(other_y, height) or abs(x - other_x) > 0.1 * width


def pick_rim(rng: random.Random) -> Rim | None:
    """How the shapes of a picture are outlined: mostly not at all."""
    if rng.random() < 0.7:
        return None
    return Rim(
        rng.choice((None, None, (0, 0, 0), (0, 0, 0), (255, 255, 255), (100, 100, 100))), rng.uniform(0.04, 0.14)
    )


def draw_shape(image: Image.Image, shape: Shape, *, smooth: bool = True, rim: Rim | None = None) -> None:
    """Draw a shape into the image; `smooth` paints its border with partly covered pixels."""
    if rim is not None and shape.radius >= 8:
        _fill(image, replace(shape, rgb=rim.beside(shape.rgb)), smooth=smooth)
        shape = replace(shape, radius=shape.radius - max(1.0, rim.width * shape.radius))
    _fill(image, shape, smooth=smooth)


def _fill(image: Image.Image, shape: Shape, *, smooth: bool) -> None:
    scale = 4 if smooth else 1
    left, top = math.floor(shape.x - shape.radius) - 1, math.floor(shape.y - shape.radius) - 1
    side = 2 * math.ceil(shape.radius) + 4
    mask = Image.new("L", (side * scale, side * scale), 0)
    points = _outline(shape.kind, (shape.x - left) * scale, (shape.y - top) * scale, shape.radius * scale, shape.turn)
    pen = ImageDraw.Draw(mask)
    if shape.kind == "circle":
        (x0, y0), (x1, y1) = points
        pen.ellipse([x0, y0, x1, y1], fill=255)
    else:
        pen.polygon(points, fill=255)
    if smooth:
        mask = mask.reduce(scale)
    image.paste(shape.rgb, (left, top), mask)


def _outline(kind: str, x: float, y: float, radius: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape inside a circle around (x, y); of a circle, its bounding box."""
    if kind == "circle":
        reach = 0.94 * radius
        return [(x - reach, y - reach), (x + reach, y + reach)]
    start = math.radians(turn) - math.pi / 2
    if kind == "square":
        return [_at(x, y, radius * 1.18, start + math.pi * (2 * i + 1) / 4) for i in range(4)]
    if kind == "triangle":
        return [_at(x, y + 0.15 * radius, 1.1 * radius, start + 2 * math.pi * i / 3) for i in range(3)]
    # Five points; every second corner lies further in.
    return [_at(x, y, radius * (1.1 if i % 2 == 0 else 0.46), start + math.pi * i / 5) for i in range(10)]


def _at(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    return x + radius * math.cos(angle), y + radius * math.sin(angle)


def draw_background(rng: random.Random, width: int, height: int) -> tuple[Image.Image, list[Rgb]]:
    """A plain, gradient, noisy or lined background, and the colours that shapes must stand out from."""
    first = _backdrop(rng)
    style = rng.random()
    if style < 0.4:
        image, samples = Image.new("RGB", (width, height), first), [first]
    elif style < 0.64:
        second = _near(rng, first, 45)
        ramp = _ramp(rng, width, height)[..., None]
        pixels = np.asarray(first, np.float32) * (1 - ramp) + np.asarray(second, np.float32) * ramp
        image, samples = _to_image(pixels), [first, second]
    elif style < 0.84:
        image, samples = _to_image(np.asarray(first, np.float32) + _noise(rng, width, height)), [first]
    else:
        second = _near(rng, first, 60)
        image, samples = Image.new("RGB", (width, height), first), [first, second]
        _rule(rng, image, second)
    if rng.random() < 0.12:
        _frame(rng, image)
    return image, samples


def _noise(rng: random.Random, width: int, height: int) -> Floats:
    """Grain, or coarse blotches: noise on a small grid, enlarged. Values around 0 over (height, width, 1)."""
    noise = np.random.default_rng(rng.getrandbits(64))
    strength = rng.uniform(4, 16)
    if rng.random() < 0.6:
        return noise.normal(0, strength, (height, width, 1)).astype(np.float32)
    cells = noise.normal(0, strength, (rng.randint(3, 12), rng.randint(3, 12))).astype(np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR))[..., None]


def _rule(rng: random.Random, image: Image.Image, rgb: Rgb) -> None:
    """Rule the image like paper: lines across, down or both, thin or as stripes; or tell a wall from a floor."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    across, down = rng.choice(((True, False), (True, False), (False, True), (True, True)))
    if rng.random() < 0.2:
        pen.rectangle((0, rng.uniform(0.3, 0.8) * height, width, height), fill=rgb)
        return
    gap = rng.uniform(0.04, 0.2) * min(width, height) + 3
    thick = max(1, round(gap * (0.5 if rng.random() < 0.25 else rng.uniform(0.02, 0.2))))
    start = rng.uniform(0, gap)
    for place in np.arange(start, max(width, height), gap):
        if across:
            pen.line((0, place, width, place), fill=rgb, width=thick)
        if down:
            pen.line((place, 0, place, height), fill=rgb, width=thick)


def _frame(rng: random.Random, image: Image.Image) -> None:
    """A line around the whole picture, at its border or a little inside."""
    width, height = image.size
    side = min(width, height)
    inset = rng.choice((0.0, rng.uniform(0, 0.04) * side))
    rgb = rng.choice(((0, 0, 0), (255, 255, 255), (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))))
    thick = max(1, round(rng.uniform(0.005, 0.03) * side))
    ImageDraw.Draw(image).rectangle((inset, inset, width - 1 - inset, height - 1 - inset), outline=rgb, width=thick)


def _to_image(pixels: npt.NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _ramp(rng: random.Random, width: int, height: int) -> Floats:
    """Values from 0 to 1 over (height, width), rising in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = columns * math.cos(angle) / width + rows * math.sin(angle) / height
    low, high = float(slope.min()), float(slope.max())
    ramp: Floats = (slope - low) / max(high - low, 1e-6)
    return ramp


def _backdrop(rng: random.Random) -> Rgb:
    style = rng.random()
    if style < 0.2:
        return (255, 255, 255)
    if style < 0.45:  # light and tinted
        hue, saturation, value = rng.random(), rng.uniform(0, 0.25), rng.uniform(0.8, 1.0)
    elif style < 0.65:  # grey
        hue, saturation, value = 0.0, 0.0, rng.uniform(0.3, 0.9)
    elif style < 0.85:  # muted
        hue, saturation, value = rng.random(), rng.uniform(0.15, 0.45), rng.uniform(0.35, 0.8)
    else:  # dark
        hue, saturation, value = rng.random(), rng.uniform(0, 0.5), rng.uniform(0.02, 0.3)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _near(rng: random.Random, rgb: Rgb, reach: int) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-reach, reach))) for value in rgb)
    return red, green, blue
