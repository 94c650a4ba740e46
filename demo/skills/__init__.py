"""The skills: one module each. A new one is written beside them and listed here."""

from __future__ import annotations

from collections.abc import Iterable

from demo.skills import chat, colour, compare, count, describe, exists, follow_up, place, read, watch
from demo.skills.base import AFTER, BEFORE, Example, Skill, Turn

__all__ = ["SKILLS", "Example", "Skill", "Turn", "texts"]

SKILLS: dict[str, Skill] = {
    skill.name: skill
    for skill in (
        *(describe.SKILL, count.SKILL, colour.SKILL, place.SKILL, exists.SKILL),
        *(read.SKILL, compare.SKILL, follow_up.SKILL, watch.SKILL, chat.SKILL),
    )
}


def texts() -> Iterable[str]:
    """Every skill's words, and those around a question."""
    yield from (*BEFORE, *AFTER)
    for skill in SKILLS.values():
        yield from skill.texts()
