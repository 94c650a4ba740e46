"""Scoring: right and wrong answers are counted, and the table lands between its marks."""

import pytest

from demo.evaluate import evaluate, held_out_cases, put_table, score, table
from demo.skills import SKILLS


def test_a_perfect_answerer_scores_all_and_a_stubborn_one_little() -> None:
    """The score is the share of cases that the skill accepts."""
    for result in evaluate(lambda case: case.expected, count=6):
        assert (result.accuracy, result.total) == (1.0, 6)
    cases = held_out_cases("count", 12)
    stubborn = score(lambda _: cases[0].expected, cases)
    assert 0 < stubborn.accuracy < 0.6
    assert all(not case.right(given) for case, given in stubborn.wrong)


def test_follow_ups_are_asked_in_two_turns_and_others_in_one() -> None:
    """Only follow-ups need the turn before."""
    for name in SKILLS:
        assert {len(case.questions) for case in held_out_cases(name, 5)} == {2 if name == "follow-up" else 1}


def test_the_table_has_a_row_for_each_skill_and_replaces_the_old_one() -> None:
    """Markdown, put between the marks however long what stood there."""
    results = {name: evaluate(lambda case: case.expected, ["count", "chat"], 2) for name in ("fp32", "INT4")}
    content = table(results)
    assert content.splitlines() == [
        "| skill | fp32 | INT4 |",
        "| --- | --- | --- |",
        "| count | 100.0% | 100.0% |",
        "| chat | 100.0% | 100.0% |",
    ]
    page = "before\n<!-- demo-eval -->\nold\nrows\n<!-- /demo-eval -->\nafter\n"
    assert put_table(page, content) == f"before\n<!-- demo-eval -->\n{content}<!-- /demo-eval -->\nafter\n"
    with pytest.raises(SystemExit, match="no place for the table"):
        put_table("no marks", content)
