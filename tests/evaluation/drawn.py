"""Files of questions about drawn pictures, of which the demo model knows the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.evaluate import held_out_cases
from demo.scenes import COLOURS

Lines = list[dict[str, Any]]


def colours(folder: Path, count: int) -> Lines:
    """Multiple choice: which colour a shape has. Pictures are written into `folder`."""
    lines = []
    for index, case in enumerate(held_out_cases("colour", count)):
        name = f"colour-{index}.png"
        case.images[0].save(folder / name)
        right = case.expected.rstrip(".").rsplit(" ", 1)[1]
        wrong = [colour for colour in COLOURS if colour != right]
        choices = [*wrong[: index % 4], right, *wrong[index % 4 : 3]]
        lines.append(
            {
                "id": f"colour-{index}",
                "images": [name],
                "question": case.questions[0],
                "prompt": case.questions[0],  # the demo model has not learned to say a letter
                "choices": choices,
                "answer": "ABCD"[choices.index(right)],
                "category": "colour",
            }
        )
    return lines


def signs(folder: Path, count: int) -> Lines:
    """Short answers: what is printed on a sign, scored by ANLS."""
    lines = []
    for index, case in enumerate(held_out_cases("read", count)):
        name = f"sign-{index}.png"
        case.images[0].save(folder / name)
        question = case.questions[0]
        lines.append(
            {
                "id": f"sign-{index}",
                "images": [name],
                "question": question,
                "prompt": question,
                "answers": [case.expected],
                "metric": "anls",
                "category": "sign",
            }
        )
    return lines


def write(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """A file of questions."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path
