"""Compare two images: whether they show the same, and which of them has something."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from demo.scenes import COLOURS, SHAPES, Scene, draw_scene, redraw
from demo.seeds import Split
from demo.sizes import Size
from demo.skills import describe
from demo.skills.base import Example, Phrasings, Skill, Turn

_SAME = Phrasings(
    train=(
        "Are (these|they|both) the same?",
        "Are (these|they|both) (identical|equal|alike|similar)?",
        "Are the two (pictures|photos|drawings) the same?",
        "Are (these|the two|both|the) (pictures|images|drawings|photos) (identical|equal|alike|different)?",
        "Are these (pictures|photos|drawings) the same?",
        "Are both images the same?",
        "Are the images the same or different?",
        "Are they (different|the same or different|the same picture)?",
        "Do (they|these|both|the two) (look the same|look alike|match|differ|show the same)?",
        "Do the two (images|drawings|pictures) (show the same|match|look alike|look the same)?",
        "Do both (pictures|images) show the same(| thing| things| shapes)?",
        "Is it (the same picture|the same image|the same) (twice|both times|in both)?",
        "Is the (first|second) (picture|image) the same as the (other|other one)?",
        "Is this the same picture twice?",
        "Same or (different|not)?",
        "Compare (the pictures|the two images|them|both|both pictures|these two|these two pictures).",
        "Please compare (these images|them|both pictures|the pictures).",
        "Can you compare (the two pictures|them|these images)?",
        "What is the difference(| here| between them| between the images| between these two pictures)?",
        "What( is|'s) different(| here| in the second picture)?",
        "What (differs|changed|has changed|is different between the two images|is different between them)?",
        "(Is there|Do you see) (a|any) difference(| between them)?",
        "(How|In what) do (they|the pictures|the two images) differ?",
        "How are they different?",
        "(Find|Spot|Name|Tell me) the (difference|differences).",
        "(Tell me|Say) (if|whether) (the pictures|the images|they) are the same(| or not).",
        "Describe both (pictures|images).",
    ),
    held_out=(
        "Are the two images the same?",
        "Are these images the same or different?",
        "Are both pictures the same?",
        "Do the two pictures show the same thing?",
        "Compare these pictures.",
        "Please compare the two images.",
        "What is the difference between the two pictures?",
        "Tell me if they are different.",
    ),
)
# {} stands for a shape, as in "red circle".
_WHICH = Phrasings(
    train=(
        "Which (picture|image|one|photo|drawing) has the {}?",
        "Which (one|photo|drawing) has a {}(| in it)?",
        "Which (picture|one|drawing) (shows|contains) (the|a) {}?",
        "Which of (them|the two images|the two|these) (has|shows|contains) (a|the) {}?",
        "Which of the pictures shows a {}?",
        "Which image (shows|contains) a {}?",
        "In which (picture|one|photo) is (the|a|there a) {}?",
        "In which (image|one|drawing) (do|can) you see (a|the) {}?",
        "Where is the {}, in the first or (the second picture|in the second)?",
        "Is the {} in the first or the second (picture|image)?",
        "Which has (the|a) {}?",
        "Tell me which (picture|one) has (the|a) {}.",
        "(Please find|Find|Show me) the (picture|image|one) (with|that has) the {}.",
        "(First|The first) or second: which has the {}?",
    ),
    held_out=(
        "Which of the two pictures has a {}?",
        "Which image has a {}?",
        "In which image is the {}?",
        "Which of the images shows the {}?",
        "Tell me which image has the {}.",
        "In which picture do you see a {}?",
    ),
)
_MORE = Phrasings(
    train=(
        "Which (picture|image|one|drawing) has more (shapes|objects|things)?",
        "Which of the two (has|shows|contains) more (shapes|things)?",
        "Which of them has (more|the most) shapes?",
        "In which picture (are|are there|do you see) more shapes?",
        "Which picture (shows|contains) more(| shapes)?",
        "Where are (more shapes|there more shapes)?",
        "Which has more?",
    ),
    held_out=(
        "Which of the two pictures has more shapes?",
        "In which image are more shapes?",
        "Which has more shapes?",
    ),
)
# {} stands for "first" or "second".
_ONE = Phrasings(
    train=(
        "What is in the {} (picture|image|one|photo|drawing)?",
        "What's in the {} (picture|one)?",
        "What does the {} (picture|one|drawing) show?",
        "Describe the {} (image|one|drawing).",
        "What (do|can) you see in the {} (picture|one)?",
        "What is (drawn|shown) in the {} (picture|image|one)?",
        "And (the {} one|in the {} one|the {} picture)?",
    ),
    held_out=("Describe the {} picture.", "What does the {} image show?", "What do you see in the {} image?"),
)
_ORDINALS = ("first", "second")
_NAMES = re.compile(rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})")


class Compare(Skill):
    """Looks at two pictures."""

    name = "compare"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*_SAME.all_trained, *_MORE.all_trained)
        for phrasing in _WHICH.all_trained:
            yield phrasing.format("red circle")
        for ordinal in _ORDINALS:
            yield from (phrasing.format(ordinal) for phrasing in _ONE.all_trained)
            yield has(ordinal, "red circle")
            yield f"The {ordinal} picture has more shapes."
        yield verdict(["red circle"], ["blue square"])
        yield verdict(["red circle"], ["red circle"])

    def turns(self, rng: random.Random, split: Split, pair: tuple[Scene, Scene], count: int) -> tuple[Turn, ...]:
        """Up to `count` different turns about two scenes."""
        asked: dict[str, Turn] = {}
        for _ in range(2 * count):
            turn = self._turn(rng, split, pair, first=not asked)
            asked.setdefault(turn.answer, turn)
        return tuple(asked.values())[:count]

    def _turn(self, rng: random.Random, split: Split, pair: tuple[Scene, Scene], *, first: bool) -> Turn:
        names = [[shape.name for shape in scene.shapes] for scene in pair]
        style = rng.random()
        # Other answers give a verdict away, so in training it mostly comes first.
        if style < (0.5 if split is Split.HELD_OUT else 0.65 if first else 0.45):
            return Turn(self.name, _SAME.pick(rng, split), verdict(*names))
        only = [(ordinal, name) for ordinal, name in _told_apart(names)]
        if style < 0.8 and only:
            ordinal, name = rng.choice(only)
            return Turn(self.name, _WHICH.pick(rng, split).format(name), has(ordinal, name))
        if style < 0.9 and len(names[0]) != len(names[1]):
            ordinal = _ORDINALS[len(names[1]) > len(names[0])]
            return Turn(self.name, _MORE.pick(rng, split), f"The {ordinal} picture has more shapes.")
        if style < 0.8 or (first and split is Split.HELD_OUT):
            return Turn(self.name, _SAME.pick(rng, split), verdict(*names))
        place = rng.randrange(2)
        question = _ONE.pick(rng, split).format(_ORDINALS[place])
        return Turn(self.name, question, describe.sentence(names[place]))

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`."""
        pair = draw_pair(rng, sizes)
        return Example(self.turns(rng, split, pair, 1), pair)

    def right(self, expected: str, answer: str) -> bool:
        """The same verdict, and of each picture the same shapes in any order."""
        return _gist(expected) == _gist(answer.strip())


def draw_pair(
    rng: random.Random, sizes: Sequence[Size], most: int = 3, *, same: float = 0.4, changed: float = 0.35
) -> tuple[Scene, Scene]:
    """Two scenes of at most so many shapes: the same twice, with one thing changed, or drawn apart."""
    first = draw_scene(rng, *rng.choice(sizes), count=min(most, rng.choice((1, 1, 2, 2, 3))))
    style = rng.random()
    if style < same:
        # The same picture, as it is or in another size.
        return first, first if rng.random() < 0.7 else redraw(rng, first, *_like(rng, first, sizes))
    if style < same + changed:
        return first, redraw(rng, first, *_like(rng, first, sizes), change=True)
    return first, draw_scene(rng, *rng.choice(sizes), count=min(most, rng.choice((1, 1, 2, 2, 3))))


def _like(rng: random.Random, scene: Scene, sizes: Sequence[Size]) -> Size:
    """A size of nearly the scene's aspect ratio."""
    some = [rng.choice(sizes) for _ in range(20)]
    best = min(some, key=lambda size: abs(size[0] / size[1] - scene.width / scene.height))
    ratio = best[0] / best[1] * scene.height / scene.width
    return best if 0.95 < ratio < 1.05 else (scene.width, scene.height)


def _told_apart(names: Sequence[Sequence[str]]) -> Iterable[tuple[str, str]]:
    """What only one of the two pictures has: a name ("red circle") or a kind ("circle")."""
    kinds = [[name.split()[-1] for name in some] for some in names]
    for here, there, ordinal in ((0, 1, "first"), (1, 0, "second")):
        for name, kind in zip(names[here], kinds[here], strict=True):
            if name not in names[there]:
                yield ordinal, name
            if kind not in kinds[there]:
                yield ordinal, kind


def has(ordinal: str, name: str) -> str:
    """The answer to which picture has a shape."""
    return f"The {ordinal} picture has the {name}."


def verdict(first: Sequence[str], second: Sequence[str]) -> str:
    """What both pictures show, and whether that is the same."""
    same = Counter(first) == Counter(second)
    return (
        f"The first picture shows {describe.listing(first)}, the second shows {describe.listing(second)}. "
        f"They are {'the same' if same else 'different'}."
    )


def _gist(text: str) -> object:
    """What an answer says, with the order of shapes left out."""
    parts = re.fullmatch(r"The first picture shows (.*), the second shows (.*)\. They are (the same|different)\.", text)
    if parts is not None:
        return parts[3], Counter(_NAMES.findall(parts[1])), Counter(_NAMES.findall(parts[2]))
    names = _NAMES.findall(text)
    return Counter(names) if names and text == describe.sentence(names) else text


SKILL = Compare()
