"""Messages that are written once, for the code that raises them and for the pages that list them."""

from __future__ import annotations

import enum


class Problem(enum.Enum):
    """Something that can be wrong. Subclasses have the members.

    Attributes:
        message: One sentence with the cause and the remedy; fields in braces are filled in.
        remedy: What the table in the documentation adds.
    """

    def __init__(self, message: str, remedy: str) -> None:
        self.message = message
        self.remedy = remedy


class ProblemError(Exception):
    """A problem, with its message filled in.

    Args:
        problem: What is wrong.
        values: The fields of its message.
    """

    def __init__(self, problem: Problem, **values: object) -> None:
        super().__init__(problem.message.format(**values))
        self.problem = problem
