"""Lessons: what a training chat asks, about what, and how often."""

from collections import Counter

import pytest

from demo.seeds import Split, stream
from demo.skills import follow_up, read
from recipes.demo_model.lessons import LESSONS, lesson, scene_lesson

ASKED = [name for name in LESSONS if name not in ("crowd", "page")]  # which are only looked at


@pytest.mark.parametrize("name", ASKED)
def test_lessons_ask_different_things_about_one_thing(name: str) -> None:
    """Turns of one training chat share what is shown and differ in their answers; about a clip, or in what is asked."""
    for index in range(30):
        chat = lesson(name, stream(Split.TRAIN, 1, index), [(200, 150)], 3, 4)
        assert chat.turns
        assert len({(name == "clip" and turn.question, turn.answer) for turn in chat.turns}) == len(chat.turns)
        assert (chat.clip is not None) == (name == "clip")
        assert len(chat.images) == {"scene": 1, "count": 1, "sign": 3, "pair": 2, "clip": 0, "talk": 0}[name]


def test_scene_lessons_ask_follow_ups_right_after_what_they_follow() -> None:
    """A follow-up is never the first turn, and only one is asked."""
    followed = 0
    for index in range(60):
        skills = [turn.skill for turn in scene_lesson(stream(Split.TRAIN, 2, index), [(200, 150)], 4, 4).turns]
        assert skills[0] != follow_up.SKILL.name
        assert skills.count(follow_up.SKILL.name) <= 1
        followed += follow_up.SKILL.name in skills
    assert followed > 5


def test_most_is_asked_with_nothing_said_before() -> None:
    """Scenes are asked about apart unless one question follows another; counting always; pairs and clips mostly."""
    lessons = {
        name: [lesson(name, stream(Split.TRAIN, 3, index), [(200, 150)], 5, 4) for index in range(200)]
        for name in ("scene", "count", "pair", "clip", "sign", "talk")
    }
    apart = {name: sum(example.apart for example in some) for name, some in lessons.items()}
    assert 120 < apart["scene"] < 170
    assert apart["count"] == 200
    assert 140 < apart["pair"] < 180
    assert 140 < apart["clip"] < 180
    assert apart["sign"] == apart["talk"] == 0
    for example in lessons["scene"]:
        assert example.apart == all(turn.skill != follow_up.SKILL.name for turn in example.turns)
    numbers = Counter(turn.answer.split()[2] for example in lessons["count"] for turn in example.turns)
    assert min(numbers[word] for word in ("no", "one", "two")) > 100


def test_signs_are_read_each_by_its_own_question() -> None:
    """Every turn of a sign's chat shows a picture and answers what is printed there, or that there is no shape."""
    read_turns = 0
    for index in range(60):
        chat = lesson("sign", stream(Split.TRAIN, 9, index), [(200, 150), (150, 200)], 4, 4)
        assert chat.one_each
        assert len(chat.turns) == len(chat.views) == 3
        for turn, view in zip(chat.turns, chat.views, strict=True):
            assert turn.answer in (f'It says "{view.text}".', "There is no shape.")
            read_turns += turn.answer != "There is no shape."
    assert read_turns > 150


def test_scenes_are_asked_for_text_now_and_then() -> None:
    """One scene in twenty or so, though other questions come after it."""
    asked = [
        turn.answer
        for index in range(400)
        for turn in scene_lesson(stream(Split.TRAIN, 10, index), [(200, 150)], 4, 4).turns
    ]
    assert 12 <= asked.count(read.NO_TEXT) <= 40


def test_pairs_are_mostly_judged_first() -> None:
    """The first turn about two pictures mostly says whether they are the same."""
    chats = [lesson("pair", stream(Split.TRAIN, 6, index), [(160, 160)], 4, 4) for index in range(100)]
    assert sum("They are " in chat.turns[0].answer for chat in chats) > 60
