"""Watch a clip: which way something moves, what appears or disappears."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.clips import Clip, Event, draw_clip
from demo.scenes import COLOURS, SHAPES
from demo.seeds import Split
from demo.sizes import Size
from demo.skills.base import Example, Phrasings, Skill, Turn, with_article

_WHAT = Phrasings(
    train=(
        "What happens?",
        "What happens in the video?",
        "What happens in this clip?",
        "What is happening?",
        "What is happening in this video?",
        "What is going on in the video?",
        "What do you see in the video?",
        "What does the video show?",
        "What does this clip show?",
        "What changes?",
        "What changes in the video?",
        "What is in this video?",
        "Describe the video.",
        "Describe this clip.",
        "Describe what happens.",
        "Please describe the video.",
        "Tell me what happens.",
        "Tell me what you see in this video.",
        "Watch the video and tell me what happens.",
        "What happens to the shapes?",
    ),
    held_out=(
        "What happens in this video?",
        "What is happening in the video?",
        "What happens in the clip?",
        "Describe this video.",
        "Please describe this clip.",
        "Tell me what happens in the video.",
        "What changes in this clip?",
    ),
)
# {} stands for a shape, as in "red circle".
_WAY = Phrasings(
    train=(
        "Which way does the {} move?",
        "Which way does the {} go?",
        "Where does the {} move?",
        "Where does the {} go?",
        "In which direction does the {} move?",
        "What direction does the {} move in?",
        "What is the direction of the {}?",
        "How does the {} move?",
        "What does the {} do?",
        "What happens to the {}?",
        "Does the {} move to the left or to the right?",
        "Tell me which way the {} moves.",
        "Which way is the {} moving?",
    ),
    held_out=(
        "In which direction does the {} go?",
        "Which direction does the {} move in?",
        "Where is the {} moving?",
        "Which way does the {} move in the video?",
        "Tell me how the {} moves.",
    ),
)
_MOVES = Phrasings(
    train=(
        "What moves?",
        "What is moving?",
        "Which shape moves?",
        "What moves in the video?",
        "Which way does it move?",
        "Which way does the shape move?",
        "Where does it go?",
        "In which direction does it move?",
    ),
    held_out=("What moves in this clip?", "Which shape is moving?", "In which direction does the shape move?"),
)
_COMES = Phrasings(
    train=(
        "What appears?",
        "What appears in the video?",
        "Which shape appears?",
        "What shape appears in this clip?",
        "What comes into the picture?",
        "What is new?",
        "Tell me what appears.",
    ),
    held_out=("What appears in this video?", "What shape appears?", "Tell me which shape appears."),
)
_GOES = Phrasings(
    train=(
        "What disappears?",
        "What disappears in the video?",
        "Which shape disappears?",
        "What shape disappears in this clip?",
        "What is gone?",
        "Tell me what disappears.",
    ),
    held_out=("What disappears in this video?", "What shape disappears?", "Tell me which shape disappears."),
)
_NOTHING = {"appear": "Nothing appears.", "disappear": "Nothing disappears.", "move": "Nothing moves."}


class Watch(Skill):
    """Says what happens in a clip."""

    name = "watch"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (*_WHAT.train, *_MOVES.train, *_COMES.train, *_GOES.train, *_NOTHING.values(), "<0.5 seconds>")
        for phrasing in _WAY.train:
            yield phrasing.format(f"{COLOURS[0]} {SHAPES[0]}")
        for event in Event:
            yield f"A {COLOURS[0]} {SHAPES[0]} {event}. The {COLOURS[0]} {SHAPES[0]} {event}."

    def turns(self, rng: random.Random, split: Split, clip: Clip, count: int) -> tuple[Turn, ...]:
        """Up to `count` different turns about a clip."""
        asked: dict[str, Turn] = {}
        for _ in range(2 * count):
            turn = self._turn(rng, split, clip)
            asked.setdefault(turn.answer, turn)
        return tuple(asked.values())[:count]

    def _turn(self, rng: random.Random, split: Split, clip: Clip) -> Turn:
        name, style = clip.actor.name, rng.random()
        happens = f"{with_article(name).capitalize()} {clip.event}."
        if style < 0.45:
            return Turn(self.name, _WHAT.pick(rng, split), happens)
        if style < 0.55:
            # Asked about something else than what happens.
            ask, nothing, wanted = rng.choice(
                [
                    (_COMES, _NOTHING["appear"], clip.event is Event.APPEARS),
                    (_GOES, _NOTHING["disappear"], clip.event is Event.DISAPPEARS),
                    (_MOVES, _NOTHING["move"], clip.event.is_motion),
                ]
            )
            return Turn(self.name, ask.pick(rng, split), happens if wanted else nothing)
        if clip.event.is_motion:
            if style < 0.85:
                kinds = [shape.kind for shape in clip.still]
                called = clip.actor.kind if clip.actor.kind not in kinds and rng.random() < 0.4 else name
                return Turn(self.name, _WAY.pick(rng, split).format(called), f"The {called} {clip.event}.")
            return Turn(self.name, _MOVES.pick(rng, split), happens)
        ask = _COMES if clip.event is Event.APPEARS else _GOES
        return Turn(self.name, ask.pick(rng, split), happens)

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`."""
        clip = draw_clip(rng, *rng.choice(sizes))
        return Example(self.turns(rng, split, clip, 1), clip=clip)


SKILL = Watch()
