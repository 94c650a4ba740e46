"""What is sent for a question, and what of the model's answer is scored."""

from __future__ import annotations

import re
from typing import NamedTuple

from evaluation.metrics import best
from evaluation.questions import AnyQuestion, ChoiceQuestion

_CHOOSE = "Answer with the option's letter from the given choices directly."
_BE_SHORT = "Answer the question using a single word or phrase."

_AROUND = r"[\s*_`\"'()\[\]{}<>.,:;]*"  # brackets, quotes, Markdown and stops that models put around a letter
_SAID = r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?"


class Judged(NamedTuple):
    """An answer that was scored.

    Attributes:
        read: what was taken from it: a letter, or the answer itself; None where no letter was found.
        score: from 0 to 1.
    """

    read: str | None
    score: float


def prompt_of(question: AnyQuestion) -> str:
    """The text that goes behind the pictures, as the usual benchmarks write it."""
    if question.prompt is not None:
        return question.prompt
    if isinstance(question, ChoiceQuestion):
        choices = [f"{letter}. {choice}" for letter, choice in zip(question.letters, question.choices, strict=True)]
        return "\n".join([question.question, *choices, _CHOOSE])
    return f"{question.question}\n{_BE_SHORT}"


def judge(question: AnyQuestion, answer: str) -> Judged:
    """Score a model's answer."""
    if isinstance(question, ChoiceQuestion):
        letter = letter_of(question, answer)
        return Judged(letter, float(letter == question.answer))
    return Judged(answer.strip(), best(question.metric, answer.strip(), question.answers))


def letter_of(question: ChoiceQuestion, answer: str) -> str | None:
    r"""The choice that an answer names; None where it names none, or several.

    The first rule that finds one decides:

    1. The answer is a letter: `B`, `(b)`, `**B**.`
    2. It begins with one and a mark, or with one and the text of its choice: `B. the moon`, `B: …`, `B the moon`.
    3. It says so, the last time if often: `the answer is B`, `Answer: (B)`, `option B`, `\boxed{B}`.
    4. It is the text of one choice, or has that of one choice alone in it as words.
    5. One capital letter of the choices stands in it alone; `A` and `I` before other words are English.
    """
    text, letters = answer.strip().replace("\u2019", "'"), question.letters
    if alone := re.fullmatch(f"{_AROUND}([{letters}]){_AROUND}", text, re.IGNORECASE):
        return alone[1].upper()
    if re.match(rf"\W*[{letters}]\s*(?:,|and|or|&|/)\s*[{letters}]\b(?!')", text):
        return None
    if begun := re.match(rf"[\s*_`\"'(\[]*([{letters}])\s*[*_`\"')\]]*[.:)\]]", text):
        return str(begun[1])
    if (begun := re.match(rf"([{letters}])\s+(.+)", text)) and _same(begun[2], _choice(question, begun[1])):
        return str(begun[1])
    said = re.findall(rf"(?i:{_SAID}){_AROUND}([{letters}])\b(?!')|\\boxed{{(?:\\text{{)?([{letters}])}}", text)
    # `the answer is A dog` names no letter: an article has a word behind it.
    if said and not re.search(rf"(?i:{_SAID})\s+A\s+[a-z]", text):
        return str(said[-1][0] or said[-1][1])
    return _by_text(question, text) or _standing(letters, text)


def _choice(question: ChoiceQuestion, letter: str) -> str:
    return question.choices[question.letters.index(letter)]


def _by_text(question: ChoiceQuestion, text: str) -> str | None:
    """The choice whose text the answer is, or holds alone."""
    for letter, choice in zip(question.letters, question.choices, strict=True):
        if _same(choice, text):
            return letter
    plain = {
        letter: choice.casefold().strip(". ") for letter, choice in zip(question.letters, question.choices, strict=True)
    }
    held = {
        letter: choice
        for letter, choice in plain.items()
        if choice and re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text.casefold())
    }
    # `sun` is found wherever `the sun` is: one that is part of another found one does not count.
    longest = [
        letter
        for letter, choice in held.items()
        if not any(choice in other and choice != other for other in held.values())
    ]
    return longest[0] if len(longest) == 1 else None


def _standing(letters: str, text: str) -> str | None:
    """The only letter that stands alone."""
    article = r"(?<=[AI])\s+(?!and\b|or\b)[a-z]"
    found = set(re.findall(rf"(?<![\w'])([{letters}])(?![\w'])(?!{article})", text))
    return found.pop() if len(found) == 1 else None


def _same(one: str, other: str) -> bool:
    return one.casefold().strip(" .*") == other.casefold().strip(" .*")
