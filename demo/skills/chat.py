"""Talk without an image: say hello and what the model can do."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.seeds import Split
from demo.skills.base import Example, Phrasings, Skill, Turn

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
    ),
    held_out=("Please tell me what you can do.", "Tell me who you are.", "Can you tell me what you can do?"),
)
_HELLO = Phrasings(train=("Hello.", "Hello!", "Hi.", "Hi!", "Hello there."), held_out=("Hi there.",))
_HELP_ANSWER = "I can describe, count and find shapes in a picture."
_HELLO_ANSWER = "Hello! Show me a picture."


class Chat(Skill):
    """Answers when there is no image."""

    name = "chat"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*_HELP.train, *_HELLO.train, _HELP_ANSWER, _HELLO_ANSWER)

    def example(self, rng: random.Random, split: Split, sizes: Sequence[tuple[int, int]]) -> Example:
        """See `Skill`; there is no image to size."""
        if rng.random() < 0.3:
            return Example((), (Turn(self.name, _HELLO.pick(rng, split), _HELLO_ANSWER),))
        return Example((), (Turn(self.name, _HELP.pick(rng, split), _HELP_ANSWER),))


SKILL = Chat()
