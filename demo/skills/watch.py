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
        "What happens (here|in it|then|in the video|in this clip|in the film|in this movie|in the animation)?",
        "What is happening(| here| in this video| in the clip| in this animation)?",
        "What's (happening|going on)(| here| in the video)?",
        "What is going on(| here| in the video| in this clip)?",
        "What (do|can) you see(| in the video| in this clip| happening)?",
        "What does (the video|this clip|it|the film|this animation) show?",
        "What (changes|changed|is changing)(| here| in the video| in it)?",
        "What is in (this|the) (video|clip)?",
        "Describe (the video|this clip|what happens|it|the animation|what you see|what is happening).",
        "Please describe (the video|what happens|it).",
        "Can you (describe the video|tell me what happens|describe this clip)?",
        "Tell me what (happens|is going on|you see in this video|changes|this video shows).",
        "(Watch|Look at) the (video|clip) and tell me what happens.",
        "What happens to the shapes?",
        "What do the shapes do?",
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
        "(Which|What) way does the {} (move|go)?",
        "Where does the {} (move|go|move to|go to)?",
        "(In which|In what) direction does the {} move?",
        "(What|Which) direction (does the {} go|does the {} go in|is the {} going|does the {} take)?",
        "What is the direction of the {}?",
        "How does the {} move?",
        "What (does the {} do|is the {} doing)?",
        "What happens (to|with) the {}?",
        "Does the {} move (to the left or to the right|left or right|up or down)?",
        "(Tell me|Say) (which way|where|in which direction) the {} (moves|goes).",
        "(Which|What) way is the {} (moving|going)?",
        "To (which|what) side does the {} (move|go)?",
        "Describe (how the {} moves|the motion of the {}|the movement of the {}).",
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
        "What (moves|is moving)?",
        "What (moves|is moving) (in the video|here|in it|in this video)?",
        "Which (shape|thing|object|one) (moves|is it that moves)?",
        "(Which|What) (way|direction) does (it|the shape) (move|go)?",
        "Where does (it|the shape) (go|move)?",
        "In (which|what) direction does it (move|go)?",
        "Does anything move(|, and where)?",
        "Is (something|anything) moving?",
        "Which way is it (moving|going)?",
    ),
    held_out=("What moves in this clip?", "Which shape is moving?", "In which direction does the shape move?"),
)
_COMES = Phrasings(
    train=(
        "What appears(| here| in the video| in it)?",
        "(Which|What) (shape|thing|object) (appears|shows up)(| here| in the video)?",
        "What (shape appears in this clip|is the shape that appears)?",
        "What (comes|comes into the picture|shows up|pops up|comes in)(| later)?",
        "What is (new|added|new at the end)?",
        "Something appears. What is it?",
        "Does (something|anything) (appear|show up)?",
        "Tell me what (appears|shows up|comes in).",
    ),
    held_out=("What appears in this video?", "What shape appears?", "Tell me which shape appears."),
)
_GOES = Phrasings(
    train=(
        "What (disappears|vanishes|goes away)(| here| in the video)?",
        "(Which|What) (shape|thing|object) (disappears|vanishes|goes away)(| in this clip)?",
        "What is (gone|missing|gone at the end)(| later)?",
        "Something disappears. What is it?",
        "Does (something|anything) (disappear|vanish|go away)?",
        "Tell me what (disappears|vanishes|is gone).",
    ),
    held_out=("What disappears in this video?", "What shape disappears?", "Tell me which shape disappears."),
)
_NOTHING = {"appear": "Nothing appears.", "disappear": "Nothing disappears.", "move": "Nothing moves."}


class Watch(Skill):
    """Says what happens in a clip."""

    name = "watch"

    def texts(self) -> Iterable[str]:
        """See `Skill`."""
        yield from (
            *_WHAT.all_trained,
            *_MOVES.all_trained,
            *_COMES.all_trained,
            *_GOES.all_trained,
            *_NOTHING.values(),
            "<0.5 seconds>",
        )
        for phrasing in _WAY.all_trained:
            yield phrasing.format(f"{COLOURS[0]} {SHAPES[0]}")
        for event in Event:
            yield f"A {COLOURS[0]} {SHAPES[0]} {event}. The {COLOURS[0]} {SHAPES[0]} {event}."

    def turns(self, rng: random.Random, split: Split, clip: Clip, count: int) -> tuple[Turn, ...]:
        """Up to `count` turns about a clip, that ask different things or are answered differently."""
        asked: dict[tuple[Phrasings, str], Turn] = {}
        for _ in range(2 * count):
            ask, called, answer = self._question(rng, clip)
            asked.setdefault((ask, answer), Turn(self.name, ask.pick(rng, split).format(called), answer))
        return tuple(asked.values())[:count]

    def _question(self, rng: random.Random, clip: Clip) -> tuple[Phrasings, str, str]:
        """How something is asked, what the shape is called if it is named, and the answer."""
        name, style = clip.actor.name, rng.random()
        happens = f"{with_article(name).capitalize()} {clip.event}."
        if style < 0.45:
            return _WHAT, name, happens
        if style < 0.55:
            # Asked about something else than what happens.
            ask, nothing, wanted = rng.choice(
                [
                    (_COMES, _NOTHING["appear"], clip.event is Event.APPEARS),
                    (_GOES, _NOTHING["disappear"], clip.event is Event.DISAPPEARS),
                    (_MOVES, _NOTHING["move"], clip.event.is_motion),
                ]
            )
            return ask, name, happens if wanted else nothing
        if clip.event.is_motion:
            if style < 0.85:
                kinds = [shape.kind for shape in clip.still]
                called = clip.actor.kind if clip.actor.kind not in kinds and rng.random() < 0.4 else name
                return _WAY, called, f"The {called} {clip.event}."
            return _MOVES, name, happens
        return (_COMES if clip.event is Event.APPEARS else _GOES), name, happens

    def example(self, rng: random.Random, split: Split, sizes: Sequence[Size]) -> Example:
        """See `Skill`."""
        clip = draw_clip(rng, *rng.choice(sizes))
        return Example(self.turns(rng, split, clip, 1), clip=clip)


SKILL = Watch()
