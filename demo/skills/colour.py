"""Say the colour of a shape that is the only one of its kind: "The circle is red."."""

from __future__ import annotations

import random
from collections.abc import Iterable

from demo.scenes import COLOURS, SHAPES, Scene, Shape
from demo.seeds import Split
from demo.skills.base import Phrasings, SceneSkill, Turn

ASK = Phrasings(
    train=(
        "What colour is the {}?",
        "What color is the {}?",
        "Which colour is the {}?",
        "Which color is the {}?",
        "What is the colour of the {}?",
        "What is the color of the {}?",
        "Which colour does the {} have?",
        "What colour does the {} have?",
        "Tell me the colour of the {}.",
        "Tell me the color of the {}.",
        "Please name the colour of the {}.",
        "The {} is what colour?",
        "The colour of the {}?",
        "What colour is the {} in the picture?",
        "What color is the {} in the image?",
        "Can you tell me the colour of the {}?",
        "{} colour?",
        "Color of the {}?",
    ),
    held_out=(
        "What color does the {} have?",
        "Which color does the {} have?",
        "Please tell me the colour of the {}.",
        "Can you tell me the color of the {}?",
        "What is the color of the {} in the picture?",
        "What colour is the {} in this image?",
        "Name the colour of the {}.",
    ),
)


class Colour(SceneSkill):
    """Names a shape's colour."""

    name = "colour"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        for index, phrasing in enumerate(ASK.train):
            yield phrasing.format(SHAPES[index % len(SHAPES)])
        for kind in SHAPES:
            for colour in COLOURS:
                yield f"The {kind} is {colour}."

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn | None:
        """See `SceneSkill`."""
        kinds = [shape.kind for shape in scene.shapes]
        single = [shape for shape in scene.shapes if kinds.count(shape.kind) == 1]
        if not single:
            return None
        shape = rng.choice(single)
        return Turn(self.name, ASK.pick(rng, split).format(shape.kind), answer(shape))


def answer(shape: Shape) -> str:
    """The colour of a shape that is the only one of its kind."""
    return f"The {shape.kind} is {shape.colour}."


SKILL = Colour()
