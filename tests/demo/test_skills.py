"""Skills: what they ask has one right answer, and other answers are told from it."""

import re
from collections import Counter

import pytest

from demo.clips import Event, draw_clip
from demo.evaluate import held_out_cases
from demo.scenes import SHAPES, draw_scene
from demo.seeds import Split, stream
from demo.sizes import held_out, random_size
from demo.skills import SKILLS, compare, count, exists, follow_up, read, watch
from demo.skills.base import Phrasings, mistyped

NOT_AN_ANSWER = "I do not know."


@pytest.mark.parametrize("name", list(SKILLS))
def test_held_out_questions_are_never_trained_on(name: str) -> None:
    """Held-out cases share no picture, size or phrasing with training; asking for more keeps the first ones."""
    cases = held_out_cases(name, 20)
    assert [case.questions for case in cases[:5]] == [case.questions for case in held_out_cases(name, 5)]
    trained, asked = set(), set()
    for index in range(200):
        rng = stream(Split.TRAIN, 0, "test", index)
        example = SKILLS[name].example(rng, Split.TRAIN, [random_size(rng, Split.TRAIN)])
        trained.update(image.tobytes() for image in example.images)
        asked.update(turn.question.rstrip("?.").lower() for turn in example.turns)
    for case in cases:
        assert all(image.tobytes() not in trained for image in case.images)
        assert all(held_out(image.size) for image in case.images)
        assert not {question.rstrip("?.").lower() for question in case.questions} & asked
        assert case.right(case.expected)
        assert not case.right(NOT_AN_ANSWER)


def test_a_phrasing_for_training_stands_for_all_its_wordings() -> None:
    """Alternatives are spelt out, but for what is held out, and the question is asked in each of the others."""
    phrasings = Phrasings(train=("What is (in|on)( it| that)?", "Look."), held_out=("What is on that.",))
    assert phrasings.spelt == (("What is in it?", "What is in that?", "What is on it?"), ("Look.",))
    asked = {phrasings.pick(stream(Split.TRAIN, 1, index), Split.TRAIN) for index in range(200)}
    assert asked >= {"What is in it?", "What is in that?", "What is on it?", "Look."}


def test_questions_are_mistyped_now_and_then() -> None:
    """By one letter more or less, in training alone; never where a word has yet to be put in."""
    rng = stream(Split.TRAIN, 1)
    typed = [mistyped(rng, "What is it?") for _ in range(1000)]
    wrong = [question for question in typed if question != "What is it?"]
    assert 10 < len(wrong) < 100
    assert {len(question) - len("What is it?") for question in wrong} == {-1, 1}
    assert all(mistyped(rng, "Where is the {}?") == "Where is the {}?" for _ in range(1000))


@pytest.mark.parametrize(
    ("number", "things", "expected"),
    [
        (0, "circles", "There is no circle."),
        (1, "red shapes", "There is one red shape."),
        (2, "circles", "There are two circles."),
        (4, "shapes", "There are four shapes."),
    ],
)
def test_a_number_is_said_in_a_sentence(number: int, things: str, expected: str) -> None:
    """None and one in the singular, more in the plural."""
    assert count.answer(number, things) == expected


def test_describing_is_judged_by_what_is_named() -> None:
    """Any order is right; a shape missing, doubled, miscoloured or outside a sentence is not."""
    right = SKILLS["describe"].right
    expected = "A red circle, a blue square and an orange star."
    assert right(expected, expected)
    assert right(expected, "A blue square, an orange star and a red circle.")
    assert not right(expected, "A red circle and a blue square.")
    assert not right(expected, "A red circle, a red circle, a blue square and an orange star.")
    assert not right(expected, "A red circle, a green square and an orange star.")
    assert not right(expected, "red circle blue square orange star")


def test_reading_is_judged_letter_by_letter() -> None:
    """One letter wrong, missing or doubled is wrong."""
    right = read.SKILL.right
    assert right(read.says("HELLO"), 'It says "HELLO".')
    for given in ('It says "HELO".', 'It says "HELLOO".', 'It says "HALLO".', "HELLO", read.NO_TEXT):
        assert not right(read.says("HELLO"), given)


def test_comparing_is_judged_by_both_pictures_and_the_verdict() -> None:
    """Shapes may come in any order within their own picture; nothing else may differ."""
    right = compare.SKILL.right
    expected = compare.verdict(["red circle", "blue square"], ["red circle"])
    assert right(expected, compare.verdict(["blue square", "red circle"], ["red circle"]))
    assert not right(expected, compare.verdict(["red circle"], ["red circle", "blue square"]))
    assert not right(expected, expected.replace("different", "the same"))
    assert right(compare.has("first", "star"), compare.has("first", "star"))
    assert not right(compare.has("first", "star"), compare.has("second", "star"))


def test_which_picture_is_asked_of_what_only_one_has() -> None:
    """The picture named by the answer has the shape asked for, and the other has not."""
    asked = 0
    for index in range(200):
        rng = stream(Split.TRAIN, 5, index)
        pair = compare.draw_pair(rng, [(160, 160), (200, 160)])
        for turn in compare.SKILL.turns(rng, Split.TRAIN, pair, 2):
            found = re.fullmatch(r"The (first|second) picture has the (.*)\.", turn.answer)
            if found is None:
                continue
            asked += 1
            here, there = pair if found[1] == "first" else pair[::-1]
            names = [{name for shape in scene.shapes for name in (shape.name, shape.kind)} for scene in (here, there)]
            assert found[2] in names[0] - names[1]
    assert asked > 20


def test_what_is_asked_for_in_vain_is_not_there() -> None:
    """Every "no" names a shape or kind that the scene lacks, and every "yes" one that it has."""
    seen = set()
    for index in range(200):
        rng = stream(Split.TRAIN, 6, index)
        scene = draw_scene(rng, 200, 150)
        turn = exists.SKILL.turn(rng, Split.TRAIN, scene)
        names = {name for shape in scene.shapes for name in (shape.name, shape.kind)}
        found = re.fullmatch(r"(Yes, there is an?|No, there is no|There is no) (.*?)( in the picture)?\.", turn.answer)
        assert found is not None, turn.answer
        seen.add(found[1])
        assert (found[2] in names) == found[1].startswith("Yes")
    assert len(seen) >= 3


def test_follow_ups_answer_what_the_turn_before_was_about() -> None:
    """A follow-up about another kind names that kind; one about "it" names the kind of the turn before."""
    for index in range(200):
        rng = stream(Split.TRAIN, 7, index)
        turns = follow_up.SKILL.turns(rng, Split.TRAIN, draw_scene(rng, 200, 150))
        if turns is None:
            continue
        before, after = turns
        if re.search(r"\bit\b|\bits\b", after.question.lower()):
            kind = next(kind for kind in SHAPES if f" {kind}" in before.answer)
            assert f" {kind} is" in after.answer
        elif found := re.search("|".join(SHAPES), after.question.lower()):
            assert found[0] in after.answer
        assert after.answer != before.answer


def test_watching_is_answered_by_the_event() -> None:
    """Answers name the actor and what it does, or that nothing of the kind asked for happens."""
    for index in range(150):
        rng = stream(Split.TRAIN, 8, index)
        clip = draw_clip(rng, 160, 128)
        for turn in watch.SKILL.turns(rng, Split.TRAIN, clip, 2):
            if turn.answer.startswith("Nothing"):
                assert str(clip.event).split()[0] != turn.answer.split()[1].rstrip(".")
            else:
                assert turn.answer.endswith(f" {clip.event}.")
                assert clip.actor.kind in turn.answer
        assert clip.event in Event


def test_what_happens_is_asked_in_several_ways() -> None:
    """Of a clip's turns mostly two say which shape it is, asked differently; no two are alike."""
    found = []
    for index in range(60):
        rng = stream(Split.TRAIN, "ways", index)
        turns = watch.SKILL.turns(rng, Split.TRAIN, draw_clip(rng, 160, 128), 5)
        assert len({(turn.question, turn.answer) for turn in turns}) == len(turns)
        found.append(sum(turn.answer.startswith(("A ", "An ")) for turn in turns))
    assert set(found) <= {1, 2}
    assert found.count(2) > 40


def test_pairs_are_drawn_as_often_alike_as_asked_for() -> None:
    """All the same, or all with one thing changed."""

    def alike(index: int, *, same: float, changed: float) -> bool:
        pair = compare.draw_pair(stream(Split.TRAIN, 8, index), [(160, 160), (200, 160)], same=same, changed=changed)
        first, second = (Counter(shape.name for shape in scene.shapes) for scene in pair)
        return first == second

    assert all(alike(index, same=1.0, changed=0.0) for index in range(30))
    assert not any(alike(index, same=0.0, changed=1.0) for index in range(30))
