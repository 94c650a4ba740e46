"""Talk without an image: say hello, what the model can do, and that there is nothing to look at."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.scenes import SHAPES
from demo.seeds import Split
from demo.sizes import Size
from demo.skills import colour, count, describe, place, read
from demo.skills.base import Example, Phrasings, Skill, Turn, plural

_HELP = Phrasings(
    train=(
        "What can you do(| for me| here)?",
        "What (do|can) you (do|help with)?",
        "(Who|What) are you?",
        "(Help|Help me)(|, please).",
        "Can you (help me|read text|read|see pictures|watch videos|describe pictures|count)?",
        "(Tell|Show) me what you can do.",
        "Please tell me (who you are|about yourself).",
        "How (can you help me|do you work|does this work|can I use you)?",
        "What are you (good at|for|able to do)?",
        "What (should|can|may) I ask(| you)?",
        "What is your (name|job)?",
        "What (do you know|are your skills|kind of model are you)?",
    ),
    held_out=("Please tell me what you can do.", "Tell me who you are.", "Can you tell me what you can do?"),
)
_HELLO = Phrasings(
    train=(
        "Hello(|!|.| there.| there!| you.)",
        "Hi(|!|.| all.| again.)",
        "Hey(|!|.| there.| you.)",
        "Good (morning|evening|afternoon|day)(.|!)",
    ),
    held_out=("Hi there.",),
)
_WHAT_KNOWN = {
    "I know circles, squares, triangles and stars.": Phrasings(
        train=(
            "(Which|What) (shapes|things|objects) (do|can) you (know|name|recognise)?",
            "(Which|What) shapes are you able to name?",
        ),
        held_out=("Tell me which shapes you know.",),
    ),
    "I know red, orange, yellow, green, blue, purple, black and white.": Phrasings(
        train=(
            "(Which|What) (colours|colors) (do|can) you (know|name|recognise)?",
            "(Which|What) (colours|colors) are you able to name?",
        ),
        held_out=("Tell me which colours you know.",),
    ),
}
_HELP_ANSWER = "I can describe pictures, count shapes, read words, compare two pictures and watch short videos."
_HELLO_ANSWER = "Hello! Show me a picture."
_BLIND_ANSWER = "I see no picture. Please show me one."


class Chat(Skill):
    """Answers when there is no image."""

    name = "chat"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        for answer, asked in _WHAT_KNOWN.items():
            yield from (answer, *asked.all_trained)
        yield from (*_HELP.all_trained, *_HELLO.all_trained, _HELP_ANSWER, _HELLO_ANSWER, _BLIND_ANSWER)

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`; there is no image to size."""
        style = rng.random()
        if style < 0.2:
            return Example((Turn(self.name, _HELLO.pick(rng, split), _HELLO_ANSWER),))
        if style < 0.35:
            answer, asked = rng.choice(list(_WHAT_KNOWN.items()))
            return Example((Turn(self.name, asked.pick(rng, split), answer),))
        if style < 0.6:
            return Example((Turn(self.name, _HELP.pick(rng, split), _HELP_ANSWER),))
        ask, noun = rng.choice(
            (
                (describe.ASK, ""),
                (read.ASK, ""),
                (count.ASK, rng.choice(("shapes", plural(rng.choice(SHAPES))))),
                (colour.ASK, rng.choice(SHAPES)),
                (place.ASK, rng.choice(SHAPES)),
            )
        )
        return Example((Turn(self.name, ask.pick(rng, split).format(noun), _BLIND_ANSWER),))


SKILL = Chat()
