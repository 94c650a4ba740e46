"""The interface of skills: phrasings, examples, and the check of an answer."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product
from typing import ClassVar

from PIL import Image

from demo.clips import Clip
from demo.scenes import Scene, draw_scene
from demo.seeds import Split
from demo.signs import Sign
from demo.sizes import Size

_MARKS = "?.!"
# What people put around a question.
BEFORE = ("", "", "Please, ", "Hello, ", "Hi! ", "OK, ", "So ", "Now ", "Well, ", "I want to know: ", "Look: ", "Hey, ")
AFTER = ("", "", " Thanks!", " Thank you.", " Please.", " Answer in one sentence.", " Be brief.", "?", "!")


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `skill` checks other wordings of that answer."""

    skill: str
    question: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A chat: what comes with the first question (images, or a clip), then one or more turns about it.

    Turns that are asked apart are as many chats, which share their images.
    """

    turns: tuple[Turn, ...]
    views: tuple[Scene | Sign, ...] = ()  # what the images show
    clip: Clip | None = None
    one_each: bool = False  # whether every turn brings an image of its own, instead of all with the first
    apart: bool = False  # whether every turn is asked as if it were the first, of what is shown once

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of the views."""
        return tuple(view.image for view in self.views)


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask the same thing. Those held out are for evaluation alone.

    In those for training, "(picture|image)" stands for either word; what is held out but for its mark is left out.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @cached_property
    def spelt(self) -> tuple[tuple[str, ...], ...]:
        """Each way to ask for training, in all its wordings."""
        held_out = {words.rstrip(_MARKS) for words in self.held_out}
        ways = ([words for words in _wordings(way) if words.rstrip(_MARKS) not in held_out] for way in self.train)
        return tuple(tuple(way) for way in ways if way)

    @property
    def all_trained(self) -> Iterator[str]:
        """Every wording for training."""
        return chain.from_iterable(self.spelt)

    def pick(self, rng: random.Random, split: Split) -> str:
        """One phrasing of the split, sometimes typed carelessly (see `careless`)."""
        if split is Split.HELD_OUT:
            return careless(rng, rng.choice(self.held_out))
        return mistyped(rng, careless(rng, rng.choice(rng.choice(self.spelt))))


def _wordings(way: str) -> Iterator[str]:
    """What a way to ask stands for, each of its alternatives chosen."""
    parts = re.split(r"\(([^)]*)\)", way)
    return map("".join, product(*(part.split("|") if place % 2 else [part] for place, part in enumerate(parts))))


class Skill(ABC):
    """The interface that every module in `demo.skills` offers as SKILL."""

    name: ClassVar[str]

    @abstractmethod
    def texts(self) -> Iterable[str]:
        """Text that holds every word of the skill's questions and answers: the tokenizer learns from it."""

    @abstractmethod
    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """A chat that begins with this skill, its images drawn in some of the sizes."""

    def right(self, expected: str, answer: str) -> bool:
        """Whether an answer is as good as the expected one: by default, the same sentence."""
        return expected == answer.strip()


class SceneSkill(Skill):
    """A skill about one drawn scene: its turns can be mixed with other scene skills' turns in one chat."""

    @abstractmethod
    def turn(self, rng: random.Random, split: Split, scene: Scene) -> Turn | None:
        """A turn about the scene; None when the scene does not allow the question."""

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`: a scene that allows the question, and one turn."""
        while True:
            scene = draw_scene(rng, *rng.choice(sizes))
            turn = self.turn(rng, split, scene)
            if turn is not None:
                return Example((turn,), (scene,))


def careless(rng: random.Random, question: str) -> str:
    """The question as people type it: often in lower case or without its mark, now and then with more around it."""
    if rng.random() < 0.1:
        before, after = rng.choice(BEFORE), rng.choice(AFTER)
        question = f"{before}{question[0].lower()}{question[1:]}{after}" if before else question + after
    style = rng.random()
    if style < 0.25:
        question = question.lower()
    if style < 0.12 or style > 0.9:
        question = question.rstrip(_MARKS)
    return question


def mistyped(rng: random.Random, question: str) -> str:
    """The question, now and then with a letter missed or typed twice; not one that has yet to say what it is about."""
    if rng.random() < 0.96 or "{" in question:
        return question
    place = rng.choice([place for place, letter in enumerate(question) if letter.isalpha()])
    return question[:place] + question[place] * rng.choice((0, 2)) + question[place + 1 :]


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


NUMBERS = ("no", "one", "two", "three", "four")


def plural(kind: str) -> str:
    """The plural of a shape's name."""
    return kind + "s"
