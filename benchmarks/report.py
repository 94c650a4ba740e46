"""Results, as tables for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import Machine

FORMAT = 1
"""Increased when the structure of the JSON changes."""


@dataclass(frozen=True)
class Table:
    """Rows under a head."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]

    @property
    def text(self) -> str:
        """The table as text: the first column left-aligned, the others right-aligned."""
        cells = [list(self.head), *([_cell(value) for value in row] for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.head))]

        def line(row: Sequence[str]) -> str:
            first, *others = (
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            return "  ".join([first, *others]).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, line(cells[0]), rule, *map(line, cells[1:])])


@dataclass(frozen=True)
class Curve:
    """A measurement against what was varied, for a picture."""

    title: str
    x: str
    y: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Report:
    """The report of one benchmark.

    Attributes:
        bench: `decoder`, `vision`, `system` or `gateway`.
        subject: The measured model and engine.
        plan: The workload, a dataclass.
        results: A dataclass, or a list of them.
        tables: The results as tables.
        curves: The results as curves, if any.
    """

    bench: str
    subject: dict[str, Any]
    plan: Any
    results: Any
    tables: Sequence[Table]
    curves: Sequence[Curve] = ()

    def text(self, machine: Machine) -> str:
        """The tables, under a line about the machine."""
        subject = ", ".join(f"{name} {value}" for name, value in self.subject.items())
        return "\n\n".join([f"{machine.line}\n{subject}", *(table.text for table in self.tables)])

    def document(self, machine: Machine) -> dict[str, Any]:
        """The JSON."""
        return {
            "bench": self.bench,
            "format": FORMAT,
            "taken": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": plain(machine),
            "subject": self.subject,
            "plan": plain(self.plan),
            "results": plain(self.results),
        }


def plain(value: Any) -> Any:
    """Convert dataclasses, and lists and mappings of them, for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def table_of(title: str, results: Iterable[Any]) -> Table:
    """A table with a column for each field of dataclasses of one kind."""
    rows = [plain(result) for result in results]
    head = list(rows[0]) if rows else []
    return Table(title, [name.replace("_", " ") for name in head], [[row[name] for name in head] for row in rows])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
