"""Follow-up questions that make sense only after the turn before: "And the square?", "What colour is it?"."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.scenes import SHAPES, Scene, draw_scene
from demo.seeds import Split
from demo.sizes import Size
from demo.skills import colour, count, describe, exists, place
from demo.skills.base import Example, Phrasings, Skill, Turn, plural, with_article

_AND = Phrasings(
    train=(
        "(And|Now|And now|Then) the {}(|, please).",
        "And the {}?",
        "(And what|What) about the {}?",
        "The {}?",
        "And (for the|that of the) {}?",
        "And the {}, please?",
        "(And the same|The same) for the {}?",
    ),
    held_out=("And now the {}?", "How about the {}?", "What about the {}, please?"),
)
_ITS_COLOUR = Phrasings(
    train=(
        "What (colour|color) is (it|that|that one)?",
        "Which (colour|color) is it?",
        "And its (colour|color)?",
        "What is its color?",
        "And (what|which) colour is it?",
        "Which color does it have?",
        "What (colour|color) does it have?",
        "Its (colour|color)?",
    ),
    held_out=("And what color is it?", "What is its colour?", "Which colour does it have?"),
)
_ITS_PLACE = Phrasings(
    train=(
        "Where is (it|that|that one)?",
        "And where is it?",
        "Where do you (see|find) it?",
        "Where is it (in the picture|placed|located)?",
        "And (its place|its position|where)?",
        "Its (place|position)?",
    ),
    held_out=("Where can you see it?", "And where do you see it?", "Where is it in the image?"),
)
_HOW_MANY = Phrasings(
    train=(
        "How many (are there|is that|are they|are these|do you see)?",
        "How many (is that|are there|are they) in (total|all)?",
        "And how many (are there|is that)?",
        "Count (them|them for me|all of them).",
        "So how many?",
        "How many shapes (is that|are they)?",
    ),
    held_out=("How many are that?", "And how many are they?", "Please count them."),
)
_WHICH = Phrasings(
    train=(
        "(Which|What) (ones|are they|are these)?",
        "Which are they?",
        "(Name|Describe|List) (them|all of them|them all|each of them).",
        "And what are they?",
        "What (shapes|things) are they?",
        "What are they like?",
        "What do they look like?",
    ),
    held_out=("And which ones?", "Please name them.", "Tell me what they are."),
)
_AND_MANY = Phrasings(
    train=(
        "And (|how many |of the |the ){}?",
        "What about (|the ){}?",
        "How many {} then?",
        "And how many {}(| do you see)?",
        "Now the {}.",
        "And the number of {}?",
    ),
    held_out=("And what about {}?", "How about {}?", "And how many {} are there?"),
)
# {} stands for a shape with its article, as in "a red circle".
_AND_IS_THERE = Phrasings(
    train=(
        "And {}?",
        "What about {}?",
        "And is there {}?",
        "Or {}?",
        "(Is there|Do you see) {}, too?",
        "{}?",
    ),
    held_out=("And now {}?", "How about {}?", "And do you see {}?"),
)
# Kinds of follow-up, drawn by number.
(
    _COLOUR_OF_ANOTHER,
    _PLACE_OF_ANOTHER,
    _ITS_COLOUR_NEXT,
    _ITS_PLACE_NEXT,
    _COUNT_ANOTHER,
    _EXISTS_ANOTHER,
    _LIST,
    _COUNT_ALL,
) = range(8)


class FollowUp(Skill):
    """Remembers what was asked before."""

    name = "follow-up"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        for phrasings in (_AND, _ITS_COLOUR, _ITS_PLACE, _HOW_MANY, _WHICH):
            yield from (phrasing.format("circle") for phrasing in phrasings.all_trained)
        yield from (phrasing.format("a circle") for phrasing in _AND_IS_THERE.all_trained)
        yield from (phrasing.format("circles") for phrasing in _AND_MANY.all_trained)

    def turns(self, rng: random.Random, split: Split, scene: Scene) -> tuple[Turn, Turn] | None:
        """A question and its follow-up; None where the scene allows none of the kind drawn."""
        style = rng.randrange(8)
        if style >= _LIST:
            return self._about_all(rng, split, scene, style)
        if style == _COUNT_ANOTHER:
            return self._about_kinds(rng, split, scene)
        if style == _EXISTS_ANOTHER:
            return self._about_what_is_there(rng, split, scene)
        return self._about_one(rng, split, scene, style)

    def _about_all(self, rng: random.Random, split: Split, scene: Scene, style: int) -> tuple[Turn, Turn]:
        """How many there are, then which; or the other way round."""
        total = count.ask(rng, split, "shapes", len(scene.shapes))
        names = describe.sentence([shape.name for shape in scene.shapes])
        if style == _LIST:
            return total, Turn(self.name, _WHICH.pick(rng, split), names)
        described = Turn(describe.SKILL.name, describe.ASK.pick(rng, split), names)
        return described, Turn(self.name, _HOW_MANY.pick(rng, split), total.answer)

    def _about_kinds(self, rng: random.Random, split: Split, scene: Scene) -> tuple[Turn, Turn]:
        """How many there are of one kind, then of another."""
        kinds = [shape.kind for shape in scene.shapes]
        first, second = rng.sample(SHAPES, 2)
        before = count.ask(rng, split, plural(first), kinds.count(first))
        answer = count.answer(kinds.count(second), plural(second))
        return before, Turn(self.name, _AND_MANY.pick(rng, split).format(plural(second)), answer)

    def _about_what_is_there(self, rng: random.Random, split: Split, scene: Scene) -> tuple[Turn, Turn]:
        """Whether one kind is there, then another."""
        kinds = [shape.kind for shape in scene.shapes]
        first, second = rng.sample(SHAPES, 2)
        before = exists.ask(rng, split, first, there=first in kinds)
        question = _AND_IS_THERE.pick(rng, split).format(with_article(second))
        return before, Turn(self.name, question, exists.answer(second, there=second in kinds))

    def _about_one(self, rng: random.Random, split: Split, scene: Scene, style: int) -> tuple[Turn, Turn] | None:
        """Colour or place of a shape, then the same of another, or the other of the same."""
        kinds = [shape.kind for shape in scene.shapes]
        single = [shape for shape in scene.shapes if kinds.count(shape.kind) == 1]
        another = style in (_COLOUR_OF_ANOTHER, _PLACE_OF_ANOTHER)
        if len(single) < 1 + another:
            return None
        shape, *others = rng.sample(single, len(single))
        colours, places = (
            Turn(colour.SKILL.name, colour.ASK.pick(rng, split).format(shape.kind), colour.answer(shape)),
            Turn(place.SKILL.name, place.ASK.pick(rng, split).format(shape.kind), place.answer(scene, shape)),
        )
        if another:
            before, of_other = (
                (colours, colour.answer(others[0]))
                if style == _COLOUR_OF_ANOTHER
                else (places, place.answer(scene, others[0]))
            )
            return before, Turn(self.name, _AND.pick(rng, split).format(others[0].kind), of_other)
        if style == _ITS_COLOUR_NEXT:
            return places, Turn(self.name, _ITS_COLOUR.pick(rng, split), colours.answer)
        return colours, Turn(self.name, _ITS_PLACE.pick(rng, split), places.answer)

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`."""
        while True:
            scene = draw_scene(rng, *rng.choice(sizes))
            turns = self.turns(rng, split, scene)
            if turns is not None:
                return Example(turns, (scene,))

    def right(self, expected: str, answer: str) -> bool:
        """The same sentence, the same number, or the same shapes in any order."""
        return super().right(expected, answer) or describe.SKILL.right(expected, answer)


SKILL = FollowUp()
