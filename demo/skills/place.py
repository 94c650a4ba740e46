"""Say where a shape is, among nine places: "The blue square is at the top left."."""

from __future__ import annotations

import random
from collections.abc import Iterable

from demo.scenes import COLOURS, PLACES, SHAPES, Scene, Shape
from demo.seeds import Split
from demo.skills.base import Phrasings, SceneSkill, Turn

ASK = Phrasings(
    train=(
        "Where is the {}?",
        "Where is the {} in (the|this) (image|drawing|photo)?",
        "Where is the {} (placed|located|drawn|shown)?",
        "Where (can|do) you (see|find) the {}?",
        "Where would I find the {}?",
        "Where's the {}?",
        "Where exactly is the {}?",
        "(Please tell|Tell|Show) me where the {} is (placed|located|found).",
        "Tell me where you see the {}.",
        "(Say|Point out) where the {} is.",
        "Can you tell me where the {} is?",
        "What is the (place|position|location) of the {}?",
        "(In which|In what) (place|part|corner|area) is the {}?",
        "(Which|What) part of the (image|picture) is the {} in?",
        "On (which|what) side is the {}?",
        "(Find|Locate) the {}.",
        "Please (find|locate) the {}(| in this picture).",
        "The {} is where?",
        "Position of the {}?",
    ),
    held_out=(
        "Where is the {} in the picture?",
        "Where is the {} in this image?",
        "Tell me where the {} is.",
        "Where can you see the {} in the picture?",
        "Find the {} in the image.",
        "Where's the {} in the image?",
    ),
)


class Place(SceneSkill):
    """Names a shape's place; the answer calls the shape what the question called it."""

    name = "place"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        for index, phrasing in enumerate(ASK.all_trained):
            yield phrasing.format(SHAPES[index % len(SHAPES)])
        for row in PLACES:
            for place in row:
                yield f"The {COLOURS[0]} {SHAPES[0]} is {preposition(place)} {place}."

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn | None:
        """See `SceneSkill`."""
        names = [shape.name for shape in scene.shapes]
        kinds = [shape.kind for shape in scene.shapes]
        single = [(shape.name, shape) for shape in scene.shapes if names.count(shape.name) == 1]
        if rng.random() < 0.3:
            single = [(shape.kind, shape) for shape in scene.shapes if kinds.count(shape.kind) == 1] or single
        if not single:
            return None
        called, shape = rng.choice(single)
        return Turn(self.name, ASK.pick(rng, split).format(called), answer(scene, shape, called))


def answer(scene: Scene, shape: Shape, called: str | None = None) -> str:
    """The place of a shape, called by its kind unless told otherwise."""
    place = scene.place(shape)
    return f"The {called or shape.kind} is {preposition(place)} {place}."


def preposition(place: str) -> str:
    """The words before a place: "at the" top, "on the" left, "in the" centre."""
    if place == "centre":
        return "in the"
    return "on the" if place in ("left", "right") else "at the"


SKILL = Place()
