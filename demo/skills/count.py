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
        "How many {} are (there|there in total|there here|here)?",
        "How many {} (do|can) you (see|count|find)?",
        "How many {} are (in|on) (the|this) (image|picture|photo|drawing)?",
        "How many {} are (shown|drawn|visible)(| here| in the picture| in this image)?",
        "How many {} does (the picture|the image|this drawing|it) (show|have|contain)?",
        "How many {} (have been|were) drawn?",
        "How many {} can you see in (the|this) (picture|photo)?",
        "How many {}?",
        "How many {} in (the|this) (picture|image)?",
        "Count the {}(| in the picture| you see| for me| here).",
        "Count (all the|all) {}.",
        "Please count the {}(| in this image).",
        "Can you count the {}(| in the picture)?",
        "Count the {}, please.",
        "(Tell me|Say) how many {} (there are|you see|are there).",
        "What is the (number|total number|count) of {}?",
        "Are there any {}, and how many?",
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
_ALSO_SHAPES = ("objects", "things", "figures", "items", "symbols")


class Count(SceneSkill):
    """Says how many there are."""

    name = "count"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        things = ["shapes", *map(plural, SHAPES), *(f"{colour} shapes" for colour in COLOURS)]
        yield from _ALSO_SHAPES
        for index, phrasing in enumerate(ASK.all_trained):
            yield phrasing.format(things[index % len(things)])
        for thing in things:
            yield f"There are no {thing}."  # never said; the checkpoint's tokenizer was built from it
            for number in range(1, len(NUMBERS)):
                yield answer(number, thing)

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn:
        """See `SceneSkill`."""
        style = rng.random()
        # Of all shapes training asks less often: they are sooner counted than those of one kind or colour.
        of_all, of_kind = (0.2, 0.6) if split is Split.TRAIN else (0.4, 0.75)
        # Two questions in three are about something that is there; asking at random would nearly always give "no".
        if style < of_all:
            called = rng.choice(_ALSO_SHAPES) if rng.random() < 0.4 else "shapes"
            return ask(rng, split, "shapes", len(scene.shapes), called)
        if style < of_kind:
            kind = rng.choice(SHAPES) if rng.random() < 0.35 else rng.choice(scene.shapes).kind
            thing, number = plural(kind), sum(shape.kind == kind for shape in scene.shapes)
        else:
            colour = rng.choice(COLOURS) if rng.random() < 0.35 else rng.choice(scene.shapes).colour
            thing, number = f"{colour} shapes", sum(shape.colour == colour for shape in scene.shapes)
        return ask(rng, split, thing, number)


def ask(rng: random.Random, split: Split, things: str, number: int, called: str | None = None) -> Turn:
    """The turn about a number of things given in the plural, which the question may call otherwise."""
    return Turn(SKILL.name, ASK.pick(rng, split).format(called or things), answer(number, things))


def answer(number: int, things: str) -> str:
    """The sentence for a number of things given in the plural: "There is one circle."; "There is no circle.".

    None takes the singular, so that the first word to choose says whether there are several.
    """
    if number <= 1:
        return f"There is {NUMBERS[number]} {things.removesuffix('s')}."
    return f"There are {NUMBERS[number]} {things}."


SKILL = Count()
