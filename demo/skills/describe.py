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
        "What is in (the|this) (picture|image|photo|drawing|scene)?",
        "What's in (the|this) (picture|image|photo|drawing)?",
        "What is (here|this|on it|in it|there)?",
        "What's (this|here|there)?",
        "What (do|can) you see?",
        "What (do|can) you see (in|on) (the|this) (picture|image|photo|drawing)?",
        "What (do|can) you see (here|there)?",
        "What does (the|this) (picture|image|photo|drawing|scene) (show|contain|have in it)?",
        "What does it show?",
        "What is (shown|drawn|visible|depicted) (here|in the picture|in this image|in the drawing)?",
        "What (has been|was) drawn (here|in the picture)?",
        "What (shapes|objects|things|figures) are (there|in the image|in this picture|drawn here)?",
        "What (shapes|objects|things|figures) (do|can) you see?",
        "Which (shapes|objects|things|figures) are (in the image|in this picture|shown)?",
        "Which (shapes|objects|things|figures) (do you see|can you see in this image)?",
        "(Which|What) (colours|colors) (are there|do you see|are in the picture|are used)?",
        "Describe (the|this) (image|picture|photo|drawing|scene).",
        "Describe (what you see|it|everything|what is in the picture|what is there).",
        "Can you (describe the picture|describe this image|describe it|tell me what this is|say what you see)?",
        "Could you describe (the|this) (picture|image|photo)(| for me)?",
        "Please (describe|explain) (this|the) (image|picture|drawing).",
        "Please tell me what is in the (picture|image|drawing).",
        "Tell me what (you see|is there|is in the picture|is shown here|this is).",
        "Tell me about (the|this) (picture|image|drawing).",
        "Give me a description(| of the picture| of this image).",
        "Say what you see.",
        "(List|Name) (the|all|all the) (shapes|objects|things)(| in the image| in this picture| you see).",
        "(List|Name) everything (in the picture|you see).",
        "Name all shapes and their (colours|colors).",
        "Which shapes and (colours|colors) (are there|do you see)?",
        "Describe.",
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
        yield from ASK.all_trained
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
