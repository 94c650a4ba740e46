"""What a skill is: one thing that the model can do, its phrasings, its examples, and how an answer is judged."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from demo.clips import Clip
from demo.scenes import Scene, draw_scene
from demo.seeds import Split
from demo.signs import Sign
from demo.sizes import Size


@dataclass(frozen=True)
class Turn:
    """A question and the one right answer to it; `skill` says who judges other wordings of that answer."""

    skill: str
    question: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A chat: what comes with the first question (images, or a clip), then one or more turns about it."""

    turns: tuple[Turn, ...]
    views: tuple[Scene | Sign, ...] = ()  # what the images show
    clip: Clip | None = None
    one_each: bool = False  # whether every turn brings an image of its own, instead of all with the first

    @property
    def images(self) -> tuple[Image.Image, ...]:
        """The pictures of the views."""
        return tuple(view.image for view in self.views)


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask the same thing. Those held out are for evaluation alone."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, rng: random.Random, split: Split) -> str:
        """One phrasing of the split, sometimes typed carelessly (see `careless`)."""
        return careless(rng, rng.choice(self.train if split is Split.TRAIN else self.held_out))


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
    """The question as people type it: often in lower case, often without its mark."""
    style = rng.random()
    if style < 0.25:
        question = question.lower()
    if style < 0.12 or style > 0.9:
        question = question.rstrip("?.")
    return question


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


NUMBERS = ("no", "one", "two", "three", "four")


def plural(kind: str) -> str:
    """The plural of a shape's name."""
    return kind + "s"
