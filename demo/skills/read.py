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
        "What does (the|this) (image|sign|board|label|photo|plate|card|note|poster|screen|drawing) say?",
        "What does this picture say?",
        "What is (written|printed) (here|there|on it|in it)?",
        "What is (written|printed) (in|on) (the picture|the sign|this image|this sign)?",
        "What is (written|printed) on (the board|the label|this plate|this card)?",
        "What's (written|printed) (here|on it|on the sign|there)?",
        "What word (is this|is it|is written here|is printed here|is on the sign|is in the picture)?",
        "What word (do|can) you see?",
        "Which word (is this|is it|is written here|is printed here|do you see|can you see|is shown)?",
        "What (text|writing|letters) (is|are) (in the image|here|there|on the sign|shown|written here)?",
        "What (text|letters|word) (do|can) you (see|read)(| here)?",
        "(Read|Say|Spell) (the text|the word|this|it|the sign|this sign|the board|the label|the letters).",
        "Read (this|it|the text|the sign) (to me|aloud|out|for me).",
        "Read.",
        "Please read (the text|this word|it|this sign|the sign|this|what is written).",
        "(Can|Could) you read (this|it|the sign|the text in the picture|what is written here|that)?",
        "What can you read(| here| on the sign| in the picture)?",
        "(Tell me|Say) what (it says|the sign says|is printed here|you read|the text is).",
        "What is the (text|word)?",
        "What's the text?",
        "The (text|word)?",
        "Is there any text, and what does it say?",
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
        "What number is (this|it|shown|written here|printed here|on the sign|in the picture)?",
        "Which number is (this|it|shown|written here|printed here|on the board)?",
        "What number (do|can) you (see|read)?",
        "Which number can you (see|read)?",
        "(What|Which) (digits|numbers) (do you see|are these|are written here|can you read)?",
        "Read (the|this) number(| to me| for me).",
        "Please read (this|out the) number.",
        "What is the number(| here| on the sign| in the picture)?",
        "What's the number?",
        "(Tell me|Say) the number.",
        "The number?",
    ),
    held_out=("What number is in the image?", "Which number do you see?", "Please read the number."),
)
NO_TEXT = "There is no text in the picture."


class Read(Skill):
    """Says what is printed."""

    name = "read"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*ASK.all_trained, *_ASK_NUMBER.all_trained, NO_TEXT, 'It says "')

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
