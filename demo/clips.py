"""Short clips: a drawn scene with one event, and the ground truth about it.

A clip is a function of time (0 at its start, 1 at its end), so that it can be drawn at any frame rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from PIL import Image

from demo.scenes import (
    Rgb,
    Rim,
    Scene,
    Shape,
    compressed,
    draw_background,
    draw_shape,
    in_reading_order,
    pick_rim,
    pick_shape,
)
from demo.sizes import Size

_LEAST_TRAVEL = 0.33  # of the width or the height
_RADII = 0.1, 0.24  # of the shorter side


class Event(StrEnum):
    """The event of a clip, with the words of answers."""

    LEFT = "moves to the left"
    RIGHT = "moves to the right"
    UP = "moves up"
    DOWN = "moves down"
    APPEARS = "appears"
    DISAPPEARS = "disappears"

    @property
    def is_motion(self) -> bool:
        """Whether something moves."""
        return self not in (Event.APPEARS, Event.DISAPPEARS)


@dataclass(frozen=True)
class Clip:
    """A background, static shapes, and one moving or changing shape."""

    width: int
    height: int
    background: Image.Image
    still: tuple[Shape, ...]
    actor: Shape  # where it is at the start
    end: tuple[float, float]  # where it is at the end, in pixels
    event: Event
    moment: float  # when it appears or disappears
    jpeg_quality: int | None
    rim: Rim | None = None  # around every shape

    def shapes(self, time: float) -> tuple[Shape, ...]:
        """The visible shapes at a time."""
        if self.event is Event.APPEARS and time < self.moment:
            return self.still
        if self.event is Event.DISAPPEARS and time >= self.moment:
            return self.still
        return (*self.still, _on_its_way(self.actor, self.end, time))

    def frame(self, time: float) -> Image.Image:
        """The frame at a time."""
        image = self.background.copy()
        for shape in self.shapes(time):
            draw_shape(image, shape, rim=self.rim)
        return image if self.jpeg_quality is None else compressed(image, self.jpeg_quality)

    def scene(self, time: float) -> Scene:
        """The frame at a time, with its shapes."""
        return Scene(self.width, self.height, in_reading_order(self.shapes(time), self.height), self.background)


def draw_clip(rng: random.Random, width: int, height: int) -> Clip:
    """A clip of that size: a shape moves, appears or disappears, with up to two static shapes."""
    background, samples = draw_background(rng, width, height)
    event = rng.choice((*Event, Event.APPEARS, Event.DISAPPEARS))
    while True:
        x, y, radius = _somewhere(rng, width, height)
        margin = _margin(radius)
        end = x, y
        if event.is_motion:
            along_x = event in (Event.LEFT, Event.RIGHT)
            length, at = (width, x) if along_x else (height, y)
            to = rng.uniform(margin, length - margin)
            forwards = event in (Event.RIGHT, Event.DOWN)
            if (to - at) * (1 if forwards else -1) < _LEAST_TRAVEL * length:
                continue
            drift = rng.uniform(-0.06, 0.06) * min(width, height) if rng.random() < 0.3 else 0.0
            end = (
                (to, min(max(y + drift, margin), height - margin))
                if along_x
                else (min(max(x + drift, margin), width - margin), to)
            )
        actor = pick_shape(rng, (x, y, radius), samples)
        path = [_on_its_way(actor, end, step / 10) for step in range(11)]
        still: tuple[Shape, ...] = ()
        for _ in range(rng.choice((0, 0, 1, 1, 1, 1, 2, 2, 2, 2))):
            still += _bystander(rng, (width, height), (*path, *still), samples)
        if not event.is_motion:
            # The first one had all the room, and would mostly be the largest.
            actor, *others = rng.sample((actor, *still), 1 + len(still))
            still, end = tuple(others), (actor.x, actor.y)
        quality = rng.randint(50, 92) if rng.random() < 0.5 else None
        return Clip(width, height, background, still, actor, end, event, rng.uniform(0.3, 0.7), quality, pick_rim(rng))


def _margin(radius: float) -> float:
    """How far from the edges the middle of a shape stays."""
    return 1.2 * radius + 1


def _somewhere(rng: random.Random, width: int, height: int) -> tuple[float, float, float]:
    """The middle and the radius of any shape of a clip."""
    radius = rng.uniform(*_RADII) * min(width, height)
    margin = _margin(radius)
    return rng.uniform(margin, width - margin), rng.uniform(margin, height - margin), radius


def _on_its_way(actor: Shape, end: tuple[float, float], time: float) -> Shape:
    """The shape at a time, from where it begins straight to the end."""
    x, y = (a + (b - a) * time for a, b in zip((actor.x, actor.y), end, strict=True))
    return replace(actor, x=x, y=y)


def _bystander(rng: random.Random, size: Size, taken: Sequence[Shape], samples: Sequence[Rgb]) -> tuple[Shape, ...]:
    """A shape with another name and place than those taken, if there is room for one."""
    width, height = size
    for _ in range(60):
        x, y, radius = _somewhere(rng, width, height)
        if any(math.hypot(x - other.x, y - other.y) < 1.3 * (radius + other.radius) + 2 for other in taken):
            continue
        shape = pick_shape(rng, (x, y, radius), samples)
        if shape.name not in {other.name for other in taken}:
            return (shape,)
    return ()
