"""What is sent, and what of an answer is scored."""

from __future__ import annotations

import pytest

from evaluation.answers import judge, letter_of, prompt_of
from evaluation.questions import ChoiceQuestion, ShortQuestion

CHOICE = ChoiceQuestion(
    id="1", images=(), question="What is it?", choices=("sun", "the moon", "the sun", "Mars"), answer="B"
)
SHORT = ShortQuestion(id="2", images=(), question="What is it?", answers=("a moon", "moon"), metric="anls")
LONG = ChoiceQuestion(id="3", images=(), question="?", choices=tuple("klmnopqrs"), answer="I")


def test_prompts_are_the_usual_ones() -> None:
    """Options under the question and the sentence of the benchmarks; a prompt of the question's own takes its place."""
    assert prompt_of(CHOICE) == (
        "What is it?\nA. sun\nB. the moon\nC. the sun\nD. Mars\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompt_of(SHORT) == "What is it?\nAnswer the question using a single word or phrase."
    assert prompt_of(SHORT.model_copy(update={"prompt": "Say it."})) == "Say it."


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # the letter itself
        *((answer, "B") for answer in ("B", "b", "(b)", "**B**.", "B.\n", "[B]", "B:")),
        # the letter and the choice
        *((answer, "B") for answer in ("B. the moon", "B) Something else", "**B.** the moon", "B the moon")),
        # a sentence about the letter, the last one
        *((answer, "B") for answer in ("The answer is B.", "Answer: (B)", "It must be option B", r"\boxed{B}")),
        ("The answer is A? No: the correct answer is **D**.", "D"),
        ("Let me think. A is wrong. The answer is D", "D"),
        # the text of a choice, the longest
        *((answer, "B") for answer in ("The moon", "It is the moon.")),
        ("I see the sun", "C"),
        ("A sun", "A"),
        ("A planet like Mars", "D"),
        # a letter that stands alone
        ("It shows D here", "D"),
        # none, or several
        *((answer, None) for answer in ("", "I don't know", "A and B", "A, B", "Both A and B", "C or D", "E")),
        *(
            (answer, None)
            for answer in ("The answer is A dog", "A dog", "C'est la vie", "B\u2019s", "The sun and Mars")
        ),
    ],
)
def test_a_letter_is_found_where_there_is_one(answer: str, letter: str | None) -> None:
    """And none where the answer names none, or more than one."""
    assert letter_of(CHOICE, answer) == letter


def test_an_english_word_is_no_letter() -> None:
    """`I` is one of nine choices, and mostly a word."""
    assert letter_of(LONG, "I think of nothing") is None
    assert letter_of(LONG, "I") == "I"


def test_scores() -> None:
    """A choice is right or wrong; a short answer takes the nearest of the right ones."""
    assert judge(CHOICE, "(B)") == ("B", 1.0)
    assert judge(CHOICE, "Mars") == ("D", 0.0)
    assert judge(CHOICE, "no idea") == (None, 0.0)
    assert judge(SHORT, " Moon. ") == ("Moon.", 1.0)
    assert judge(SHORT, "mooon").score == pytest.approx(0.8)
