"""The messages of a failed export and of a bundle that cannot be used, and what to do: from the code's enumerations."""

from __future__ import annotations

from string import Formatter

from exporter.errors import ExportProblem
from serving.bundle_error import BundleProblem
from serving.problem import Problem
from tools.docs.tables import table


def export_errors() -> str:
    """The table for `triptych export`."""
    return _table(ExportProblem)


def bundle_errors() -> str:
    """The table for bundles."""
    return _table(BundleProblem)


def _table(problems: type[Problem]) -> str:
    return table(("Message", "What to do"), [(_pattern(problem.message), problem.remedy) for problem in problems])


def _pattern(message: str) -> str:
    """A message with `…` for each field."""
    parts = Formatter().parse(message)
    return "".join(text + ("" if field is None else "…") for text, field, _, _ in parts)
