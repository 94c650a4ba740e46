"""Describe a scene: "A red circle, a blue square and an orange star." in reading order."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from demo.scenes import COLOURS, SHAPES, Scene
from demo.seeds import Split
from demo.skills.base import Phrasings, SceneSkill, Turn, with_article

ASK = Phrasings(
    train=(
        "What is in the image?",
        "What is in this picture?",
        "What do you see?",
        "What can you see in the picture?",
        "What does the image show?",
        "What is this?",
        "What shapes are there?",
        "What shapes are in the image?",
        "Which shapes do you see?",
        "Which shapes can you see in this image?",
        "Describe the image.",
        "Describe this picture.",
        "Describe the scene.",
        "Describe what you see.",
        "Can you describe the picture?",
        "Please describe this image.",
        "Please tell me what is in the picture.",
        "Tell me what you see.",
        "List the shapes.",
        "List everything in the picture.",
        "Name the shapes in the image.",
        "Name all shapes and their colours.",
        "What's in the picture?",
        "What's in this image?",
        "What's this?",
        "Which shapes are in the scene?",
        "Describe.",
        "What is shown here?",
    ),
    held_out=(
        "What is in the picture?",
        "What do you see in this image?",
        "Describe the picture.",
        "Please describe the scene.",
        "Tell me what is in this image.",
        "Which shapes are there?",
        "What does this picture show?",
        "Can you describe this image?",
    ),
)
_NOUN = rf"(a|an) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_SENTENCE = re.compile(rf"(?i:{_NOUN})(, {_NOUN})*( and {_NOUN})?\.")


class Describe(SceneSkill):
    """Names every shape with its colour."""

    name = "describe"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from ASK.train
        for kind in SHAPES:
            for colour in COLOURS:
                yield f"A {colour} {kind} and a {colour} {kind}. An orange {kind}, an orange {kind}."

    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn:
        """See `SceneSkill`."""
        return Turn(self.name, ASK.pick(rng, split), sentence([shape.name for shape in scene.shapes]))

    def right(self, expected: str, answer: str) -> bool:
        """A well-formed sentence that names the same shapes the same number of times, in any order."""
        answer = answer.strip()
        return _SENTENCE.fullmatch(answer) is not None and named(answer) == named(expected)


def sentence(names: Sequence[str]) -> str:
    """Names joined into one sentence, as in "A red circle, a blue square and a green star."."""
    text = listing(names)
    return f"{text[0].upper()}{text[1:]}."


def listing(names: Sequence[str]) -> str:
    """Names with their articles, as in "a red circle, a blue square and a green star"."""
    nouns = [with_article(name) for name in names]
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def named(text: str) -> Counter[tuple[str, str]]:
    """How often each (colour, kind) is named in a text."""
    found = re.findall(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", text)
    return Counter((colour, kind) for colour, kind in found)


SKILL = Describe()
