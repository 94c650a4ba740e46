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
        "What can you do?",
        "What can you do for me?",
        "What do you do?",
        "Who are you?",
        "What are you?",
        "Help.",
        "Can you help me?",
        "Tell me what you can do.",
        "Please tell me who you are.",
        "How can you help me?",
        "What are you good at?",
    ),
    held_out=("Please tell me what you can do.", "Tell me who you are.", "Can you tell me what you can do?"),
)
_HELLO = Phrasings(
    train=("Hello.", "Hello!", "Hi.", "Hi!", "Hello there.", "Good morning.", "Good day!"), held_out=("Hi there.",)
)
_HELP_ANSWER = "I can describe pictures, count shapes, read words, compare two pictures and watch short videos."
_HELLO_ANSWER = "Hello! Show me a picture."
_BLIND_ANSWER = "I see no picture. Please show me one."


class Chat(Skill):
    """Answers when there is no image."""

    name = "chat"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*_HELP.train, *_HELLO.train, _HELP_ANSWER, _HELLO_ANSWER, _BLIND_ANSWER)

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`; there is no image to size."""
        style = rng.random()
        if style < 0.2:
            return Example((Turn(self.name, _HELLO.pick(rng, split), _HELLO_ANSWER),))
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
