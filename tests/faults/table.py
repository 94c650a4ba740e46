"""The table of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.bench import Row

_HEADS = (
    "scenario", "sent", "right", "moved", "refused, typed", "cancelled", "cut", "untyped", "wrong", "hung or lost",
    "answers/s before, during", "longest, s", "recovery, s", "",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(_HEADS) + " |", "| " + " | ".join("---" for _ in _HEADS) + " |"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    state = f"not run: {row.skipped}" if row.skipped else "" if row.passed else "FAILED"
    if row.counts is None:
        return [row.scenario, *[""] * 11, "", state]
    counts = row.counts
    refused = ", ".join(f"{number} {reason}" for reason, number in counts.refused.items()) or "0"
    rates = "" if row.before is None else f"{row.before:g}" + ("" if row.during is None else f", {row.during:g}")
    recovery = "" if not row.since else "never" if row.recovery is None else f"{row.recovery:g} from the {row.since}"
    return [
        row.scenario,
        *(str(number) for number in (counts.sent, counts.right, counts.moved)),
        refused,
        *(
            str(number)
            for number in (counts.cancelled, counts.cut, counts.untyped, counts.wrong, counts.hung + counts.lost)
        ),
        rates,
        "" if counts.longest_seconds is None else f"{counts.longest_seconds:g}",
        recovery,
        state or " ".join(f"{name} {value}" for name, value in row.figures.items()),
    ]
