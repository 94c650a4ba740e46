"""The file of questions: one JSON object a line, each with pictures and the answers that are right.

`docs/quality.md` describes the format. A file is checked as a whole before anything is asked: the error names every bad
line, and in it the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import from_json

from evaluation.errors import EvaluationError
from serving.errors import ServiceError
from vision_service.images import decode_image

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Metric = Literal["exact", "anls", "relaxed"]

_MOST_PIXELS = 1 << 27  # what the vision service refuses by default
_MOST_NAMED = 20  # bad lines whose fault is told; the numbers of the others follow

_Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Question(BaseModel):
    """What all lines have in common.

    Attributes:
        id: its name, unlike all others'.
        images: paths of the pictures, in the order in which they are shown; relative ones begin at the file.
        question: what is asked.
        prompt: what is sent in the place of the question, the choices and the instruction; None: the usual text.
        category: accuracy is told for each, too; "" has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: _Words
    images: tuple[_Words, ...]
    question: _Words
    prompt: _Words | None = None
    category: str = ""


class ChoiceQuestion(Question):
    """Several choices, one of which is right.

    Attributes:
        choices: what is offered; the first is A.
        answer: letter of the right one.
    """

    choices: tuple[_Words, ...] = Field(min_length=2, max_length=len(LETTERS))
    answer: str = Field(pattern=r"^[A-Z]$")

    @model_validator(mode="after")
    def _is_among_them(self) -> Self:
        if LETTERS.index(self.answer) >= len(self.choices):
            raise ValueError(f"answer: is {self.answer}, and the last of the choices is {self.letters[-1]}")
        return self

    @property
    def letters(self) -> str:
        """Of the choices."""
        return LETTERS[: len(self.choices)]


class ShortQuestion(Question):
    """A short answer in the model's own words.

    Attributes:
        answers: all that are right.
        metric: how an answer is compared with them.
    """

    answers: tuple[_Words, ...] = Field(min_length=1)
    metric: Metric


AnyQuestion = ChoiceQuestion | ShortQuestion


class QuestionFile:
    """A file of questions that was read and checked, but for the pictures.

    Args:
        path: the file.
        limit: questions that are taken, the first ones; None takes all.

    Raises:
        EvaluationError: the file cannot be read, is empty, or has bad lines, all of which are named.
    """

    def __init__(self, path: Path, limit: int | None = None) -> None:
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise EvaluationError(f"cannot read {path}: {error.strerror or error}") from error
        self.path = path
        numbered: list[tuple[int, AnyQuestion]] = []
        faults: dict[int, str] = {}
        first: dict[str, int] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                question = _parse(line)
            except ValueError as error:
                faults[number] = str(error)
                continue
            if (earlier := first.setdefault(question.id, number)) != number:
                faults[number] = f"id: {question.id!r} is the id of line {earlier}, too"
            numbered.append((number, question))
        _refuse(path, faults)
        if not numbered:
            raise EvaluationError(f"{path} has no questions: write one JSON object a line")
        self._numbered = numbered[:limit]

    @property
    def questions(self) -> Sequence[AnyQuestion]:
        """In the file's order."""
        return [question for _, question in self._numbered]

    def pictures(self, question: Question) -> list[bytes]:
        """The files of a question's pictures."""
        return [self._path(name).read_bytes() for name in question.images]

    def check_pictures(self, advance: Callable[[int], None] = lambda units: None) -> None:
        """Decode every picture once, as the vision service does.

        Args:
            advance: called for each question.

        Raises:
            EvaluationError: some are missing or cannot be decoded; every line that shows one is named.
        """
        faults: dict[int, str] = {}
        found: dict[str, str | None] = {}
        for number, question in self._numbered:
            for index, name in enumerate(question.images):
                if name not in found:
                    found[name] = _fault(self._path(name))
                if (fault := found[name]) is not None and number not in faults:
                    faults[number] = f"images.{index}: {name} {fault}"
            advance(1)
        _refuse(self.path, faults)

    def _path(self, name: str) -> Path:
        return self.path.parent / name


def _parse(line: bytes) -> AnyQuestion:
    """A line.

    Raises:
        ValueError: its text names the field at fault.
    """
    try:
        value: Any = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    if ("choices" in value) == ("answers" in value):
        raise ValueError("choices: there must be choices and answer, or answers and metric")
    kind: type[AnyQuestion] = ChoiceQuestion if "choices" in value else ShortQuestion
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise ValueError("; ".join(_said(detail) for detail in error.errors(include_url=False))) from None


def _said(detail: Any) -> str:
    """One of pydantic's findings: the field, and what is wrong with it."""
    message = re.sub(r"^Value error, ", "", detail["msg"])
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {message[0].lower() + message[1:]}" if where else message


def _fault(path: Path) -> str | None:
    """What is wrong with a picture."""
    try:
        decode_image(path.read_bytes(), max_pixels=_MOST_PIXELS)
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ServiceError as error:
        return error.violations[0].description
    return None


def _refuse(path: Path, faults: dict[int, str]) -> None:
    """Raise for bad lines, by their numbers."""
    if not faults:
        return
    told = [f"line {number}: {fault}" for number, fault in list(faults.items())[:_MOST_NAMED]]
    if others := list(faults)[_MOST_NAMED:]:
        told.append(f"and lines {', '.join(map(str, others))}")
    count = "one bad line" if len(faults) == 1 else f"{len(faults)} bad lines"
    raise EvaluationError(f"{path} has {count}: {'; '.join(told)}")
