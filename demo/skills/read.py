"""Read a printed word or number: 'It says "STOP".', in capitals however it is printed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.scenes import Scene, draw_scene
from demo.seeds import Split
from demo.signs import Sign, draw_sign
from demo.sizes import Size
from demo.skills.base import Example, Phrasings, Skill, Turn

ASK = Phrasings(
    train=(
        "What does it say?",
        "What does the image say?",
        "What does this sign say?",
        "What is written here?",
        "What is written in the picture?",
        "What is written on the sign?",
        "What is printed here?",
        "What word is this?",
        "What word is in the picture?",
        "Which word is this?",
        "Which word do you see?",
        "What text is in the image?",
        "What text do you see?",
        "Read the text.",
        "Read the word.",
        "Read this.",
        "Read.",
        "Read the sign.",
        "Please read the text.",
        "Please read this word.",
        "Can you read this?",
        "Can you read the text in the picture?",
        "Tell me what it says.",
        "What's the text?",
        "What's written here?",
        "The text?",
    ),
    held_out=(
        "What does the picture say?",
        "What is written in the image?",
        "Which word is in the picture?",
        "What text is in the picture?",
        "Please read the word.",
        "Can you read the word?",
        "Tell me what is written here.",
        "What does the sign say?",
    ),
)
_ASK_NUMBER = Phrasings(
    train=(
        "What number is this?",
        "Which number is this?",
        "What number do you see?",
        "What number is in the picture?",
        "Which number is written here?",
        "Read the number.",
        "Please read this number.",
        "What is the number?",
    ),
    held_out=("What number is in the image?", "Which number do you see?", "Please read the number."),
)
NO_TEXT = "There is no text in the picture."


class Read(Skill):
    """Says what is printed."""

    name = "read"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*ASK.train, *_ASK_NUMBER.train, NO_TEXT, 'It says "')

    def turn(self, rng: random.Random, split: Split, view: Scene | Sign) -> Turn:
        """A turn about a view; scenes hold no text."""
        if isinstance(view, Scene):
            return Turn(self.name, ASK.pick(rng, split), NO_TEXT)
        ask = _ASK_NUMBER if view.text.isdigit() and rng.random() < 0.5 else ASK
        return Turn(self.name, ask.pick(rng, split), says(view.text))

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`: one picture in eight holds no text."""
        size = rng.choice(sizes)
        view = draw_scene(rng, *size) if rng.random() < 0.125 else draw_sign(rng, split, *size)
        return Example((self.turn(rng, split, view),), (view,))


def says(text: str) -> str:
    """The answer for a printed text."""
    return f'It says "{text}".'


SKILL = Read()
