"""Say the colour of a shape that is the only one of its kind: "The circle is red."."""

from __future__ import annotations

import random
from collections.abc import Iterable

from demo.scenes import COLOURS, SHAPES, Scene, Shape
from demo.seeds import Split
from demo.skills.base import Phrasings, SceneSkill, Turn

ASK = Phrasings(
    train=(
        "(What|Which) (colour|color) is the {}?",
        "(What|Which) (colour|color) is the {} in (the|this) (picture|image|drawing)?",
        "What is the (colour|color) of the {}?",
        "(Which|What) colour does the {} have?",
        "What (colour|color) has the {}?",
        "(What|Which) (colour|color) was the {} (drawn|painted) in?",
        "(What|Which) (colour|color) do you see in the {}?",
        "(Tell me|Say|Give me) the (colour|color) of the {}.",
        "Please name the (colour|color) of the {}.",
        "(Tell me|Say) (what|which) (colour|color) the {} (is|has).",
        "Can you tell me (the colour of the {}|what color the {} is)?",
        "The {} is (what|which) (colour|color)?",
        "The (colour|color) of the {}?",
        "{} (colour|color)?",
        "(Colour|Color) of the {}?",
        "How is the {} coloured?",
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
        for index, phrasing in enumerate(ASK.all_trained):
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
