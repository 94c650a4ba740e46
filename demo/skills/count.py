"""Count the shapes of a scene, all of them or those of one kind or colour: "There are two circles."."""

from __future__ import annotations

import random
from collections.abc import Iterable

from demo.scenes import COLOURS, SHAPES, Scene
from demo.seeds import Split
from demo.skills.base import NUMBERS, Phrasings, SceneSkill, Turn, plural

# {} stands for what is counted: "shapes", "circles" or "red shapes".
ASK = Phrasings(
    train=(
        "How many {} are there?",
        "How many {} do you see?",
        "How many {} are in the image?",
        "How many {} are in this picture?",
        "How many {} can you see?",
        "How many {} does the picture show?",
        "How many {}?",
        "Count the {}.",
        "Count the {} in the picture.",
        "Please count the {}.",
        "Can you count the {}?",
        "Tell me how many {} there are.",
        "What is the number of {}?",
        "The number of {}?",
    ),
    held_out=(
        "How many {} are in the picture?",
        "How many {} are in this image?",
        "How many {} can you see in the image?",
        "Count the {} in the image.",
        "Please tell me how many {} there are.",
        "How many {} do you see in the picture?",
    ),
)


class Count(SceneSkill):
    """Says how many there are."""

    name = "count"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        things = ["shapes", *map(plural, SHAPES), *(f"{colour} shapes" for colour in COLOURS)]
        for index, phrasing in enumerate(ASK.train):
            yield phrasing.format(things[index % len(things)])
        for thing in things:
            for number in range(len(NUMBERS)):
                yield answer(number, thing)

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn:
        """See `SceneSkill`."""
        style = rng.random()
        # Two questions in three are about something that is there; asking at random would nearly always give "no".
        if style < 0.4:
            thing, number = "shapes", len(scene.shapes)
        elif style < 0.75:
            kind = rng.choice(SHAPES) if rng.random() < 0.35 else rng.choice(scene.shapes).kind
            thing, number = plural(kind), sum(shape.kind == kind for shape in scene.shapes)
        else:
            colour = rng.choice(COLOURS) if rng.random() < 0.35 else rng.choice(scene.shapes).colour
            thing, number = f"{colour} shapes", sum(shape.colour == colour for shape in scene.shapes)
        return ask(rng, split, thing, number)


def ask(rng: random.Random, split: Split, things: str, number: int) -> Turn:
    """The turn about a number of things given in the plural."""
    return Turn(SKILL.name, ASK.pick(rng, split).format(things), answer(number, things))


def answer(number: int, things: str) -> str:
    """The sentence for a number of things given in the plural: "There is one circle."."""
    if number == 1:
        return f"There is one {things.removesuffix('s')}."
    return f"There are {NUMBERS[number]} {things}."


SKILL = Count()
