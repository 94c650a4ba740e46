"""Say whether something is there, also when the question takes for granted that it is."""

from __future__ import annotations

import random
from collections.abc import Iterable

from demo.scenes import COLOURS, SHAPES, Scene
from demo.seeds import Split
from demo.skills import colour, place
from demo.skills.base import Phrasings, SceneSkill, Turn, with_article

# {} stands for a shape with its article, as in "a red circle".
_ASK = Phrasings(
    train=(
        "Is there {}?",
        "Is there {} (here|in it|there|in the picture|in this image|in this photo|in the drawing|anywhere)?",
        "Is there {} to be seen?",
        "Is there {} among the shapes?",
        "(Do|Can) you see {}?",
        "(Do|Can) you see {} (here|in it|there|anywhere|in the drawing|in this picture)?",
        "Do you see {} in the picture?",
        "(Can|Do) you find {}(| here| in it)?",
        "Does (the image|this picture|it|this drawing|the scene) (show|have|contain) {}?",
        "Does it have {}(| in it)?",
        "Is {} (in the image|shown|there|in it|visible|in this picture)?",
        "(Tell me|Say) (if|whether) there is {}.",
        "Has (the picture|it|this image) got {}?",
        "{}?",
    ),
    held_out=(
        "Is there {} in the image?",
        "Can you see {} in the picture?",
        "Does the picture show {}?",
        "Do you see {} in this image?",
        "Tell me if you see {}.",
    ),
)


class Exists(SceneSkill):
    """Answers yes or no, and refuses to tell of what is not there."""

    name = "exists"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        for phrasing in _ASK.all_trained:
            yield phrasing.format("a red circle")
        for name in ("red circle", "orange star"):
            yield from (answer(name, there=True), answer(name, there=False))
            yield missing(name)

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn:
        """See `SceneSkill`."""
        names = [shape.name for shape in scene.shapes]
        kinds = [shape.kind for shape in scene.shapes]
        absent_kinds = [kind for kind in SHAPES if kind not in kinds]
        name = _absent_name(rng, scene)
        style = rng.random()
        if style < 0.2 and absent_kinds:
            kind = rng.choice(absent_kinds)
            return Turn(self.name, colour.ASK.pick(rng, split).format(kind), missing(kind))
        if style < 0.45:
            called = _in_vain(rng, absent_kinds, name)
            return Turn(self.name, place.ASK.pick(rng, split).format(called), missing(called))
        if style < 0.7:
            return ask(rng, split, rng.choice(kinds if rng.random() < 0.3 else names), there=True)
        return ask(rng, split, _in_vain(rng, absent_kinds, name), there=False)


def ask(rng: random.Random, split: Split, called: str, *, there: bool) -> Turn:
    """The turn about whether something is there."""
    return Turn(SKILL.name, _ASK.pick(rng, split).format(with_article(called)), answer(called, there=there))


def answer(called: str, *, there: bool) -> str:
    """Yes or no."""
    return f"Yes, there is {with_article(called)}." if there else f"No, there is no {called}."


def _in_vain(rng: random.Random, kinds: list[str], name: str) -> str:
    """What to ask for that is not there: mostly the name, else one of the kinds."""
    return rng.choice(kinds) if kinds and rng.random() < 0.3 else name


def _absent_name(rng: random.Random, scene: Scene) -> str:
    """A shape that is not there; often one of whose colour or kind there is something."""
    names = {shape.name for shape in scene.shapes}
    near = rng.random() < 0.6
    while True:
        name = f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}"
        if near:
            shape = rng.choice(scene.shapes)
            name = rng.choice((f"{shape.colour} {rng.choice(SHAPES)}", f"{rng.choice(COLOURS)} {shape.kind}"))
        if name not in names:
            return name


def missing(name: str) -> str:
    """The answer where a question takes for granted what is not there."""
    return f"There is no {name} in the picture."


SKILL = Exists()
