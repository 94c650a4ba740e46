"""Lessons: what a training chat is about, and how often each thing is asked in it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from demo.clips import draw_clip
from demo.scenes import Scene, draw_crowd, draw_scene
from demo.seeds import Split
from demo.signs import Sign, draw_page, draw_sign
from demo.sizes import Size
from demo.skills import chat, colour, compare, count, describe, exists, follow_up, place, read, watch
from demo.skills.base import Example, SceneSkill, Turn

_SIGNS = 3  # in a chat about signs
_APART = 0.8  # how often what is asked about a pair or a clip is asked apart
# How often a turn about a scene is of that skill.
_SCENE_SKILLS: dict[SceneSkill, float] = {
    describe.SKILL: 0.28,
    count.SKILL: 0.24,
    colour.SKILL: 0.14,
    place.SKILL: 0.2,
    exists.SKILL: 0.14,
}


def _scene(rng: random.Random, sizes: Sequence[Size], most: int, *, alike: bool = False) -> Scene:
    """To be asked about: rather of more shapes, up to so many."""
    return draw_scene(rng, *rng.choice(sizes), count=min(most, rng.choice((1, 2, 3, 3, 4, 4))), alike=alike)


def scene_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """Several different turns about one scene: one look teaches several answers.

    They are a chat if one of them refers to another, and asked apart otherwise: in a chat a description gives away
    nearly everything that is asked after it.
    """
    split = Split.TRAIN
    scene = _scene(rng, sizes, most)
    asked: dict[str, Turn] = {}
    if rng.random() < 0.06:
        asked[read.NO_TEXT] = read.SKILL.turn(rng, split, scene)
    linked = follow_up.SKILL.turns(rng, split, scene) if rng.random() < 0.3 else None
    for turn in linked or ():
        asked.setdefault(turn.answer, turn)
    chosen = rng.choices(list(_SCENE_SKILLS), list(_SCENE_SKILLS.values()), k=2 * turns)
    # Some scenes allow no question of some skills; every scene can be described.
    for skill in (*chosen, describe.SKILL):
        made = skill.turn(rng, split, scene)
        if made is not None:
            # The answer is the key: no chat asks the same thing twice.
            asked.setdefault(made.answer, made)
    return Example(tuple(asked.values())[:turns], (scene,), apart=linked is None)


def _count_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """Counting alone, where several are often alike."""
    scene = _scene(rng, sizes, most, alike=True)
    made = [count.SKILL.turn(rng, Split.TRAIN, scene) for _ in range(2 * turns)]
    asked = {turn.answer: turn for turn in made}
    return Example(tuple(asked.values())[:turns], (scene,), apart=True)


def _sign_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """Some signs, one after the other, that are read and now and then asked about as if they were scenes."""
    signs = tuple(draw_sign(rng, Split.TRAIN, *rng.choice(sizes)) for _ in range(_SIGNS))
    return Example(tuple(_about_sign(rng, sign) for sign in signs), signs, one_each=True)


def _about_sign(rng: random.Random, sign: Sign) -> Turn:
    style = rng.random()
    if style < 0.05:
        return count.ask(rng, Split.TRAIN, "shapes", 0)
    if style < 0.2:
        return Turn(read.SKILL.name, describe.ASK.pick(rng, Split.TRAIN), read.says(sign.text))
    return read.SKILL.turn(rng, Split.TRAIN, sign)


def _pair_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    # Where one word differs is what takes long to be seen.
    pair = compare.draw_pair(rng, sizes, most, same=0.35, changed=0.5)
    asked = compare.SKILL.turns(rng, Split.TRAIN, pair, 3)
    return Example(asked, pair, apart=rng.random() < _APART)


def _clip_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    clip, apart = draw_clip(rng, *rng.choice(sizes)), rng.random() < _APART
    asked = watch.SKILL.turns(rng, Split.TRAIN, clip, turns if apart else 2)
    return Example(asked, clip=clip, apart=apart)


def _talk_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    return chat.SKILL.example(rng, Split.TRAIN, sizes)


def _crowd_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """To be looked at only."""
    return Example((), (draw_crowd(rng, *rng.choice(sizes)),))


def _page_lesson(rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """To be looked at only."""
    return Example((), (draw_page(rng, Split.TRAIN, *rng.choice(sizes)),))


# What a training chat is about: drawn in some of the sizes, with so many turns about scenes of so many shapes.
LESSONS: dict[str, Callable[[random.Random, Sequence[Size], int, int], Example]] = {
    "scene": scene_lesson,
    "count": _count_lesson,
    "sign": _sign_lesson,
    "pair": _pair_lesson,
    "clip": _clip_lesson,
    "talk": _talk_lesson,
    "crowd": _crowd_lesson,
    "page": _page_lesson,
}


def lesson(name: str, rng: random.Random, sizes: Sequence[Size], turns: int, most: int) -> Example:
    """A training chat."""
    return LESSONS[name](rng, sizes, turns, most)
