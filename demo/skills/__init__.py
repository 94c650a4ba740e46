"""The skills: one module each. A new one is written beside them and listed here."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from demo.scenes import draw_scene
from demo.seeds import Split
from demo.sizes import Size
from demo.skills import chat, colour, count, describe, place
from demo.skills.base import Example, SceneSkill, Skill, Turn

__all__ = ["SKILLS", "Example", "Skill", "Turn", "scene_chat", "texts"]

# How often a turn about a scene is of that skill.
_SCENE_SKILLS: dict[SceneSkill, float] = {describe.SKILL: 0.3, count.SKILL: 0.25, colour.SKILL: 0.2, place.SKILL: 0.25}
SKILLS: dict[str, Skill] = {skill.name: skill for skill in (*_SCENE_SKILLS, chat.SKILL)}


def scene_chat(
    rng: random.Random, split: Split, sizes: Sequence[Size], turns: int, count: int | None = None
) -> Example:
    """A chat of several different turns about one scene (of `count` shapes): one look teaches several answers."""
    scene = draw_scene(rng, *rng.choice(sizes), count=count)
    asked: dict[str, Turn] = {}
    chosen = rng.choices(list(_SCENE_SKILLS), list(_SCENE_SKILLS.values()), k=2 * turns)
    # Some scenes allow no question of some skills; every scene can be described.
    for skill in (*chosen, describe.SKILL):
        turn = skill.turn(rng, split, scene)
        if turn is not None:
            # The answer is the key: no chat asks the same thing twice.
            asked.setdefault(turn.answer, turn)
    kept = list(asked.values())[:turns]
    if rng.random() < 0.7:
        # A description answers most other questions: said first, it would spare the model looking.
        kept.sort(key=lambda turn: turn.skill == describe.SKILL.name)
    return Example((scene.image,), tuple(kept), (scene,))


def texts() -> Iterable[str]:
    """Every skill's words."""
    for skill in SKILLS.values():
        yield from skill.texts()
