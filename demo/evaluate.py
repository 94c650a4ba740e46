"""Scores the demo model on examples that are not in the training data.

The held-out set has its own random stream, image sizes, fonts, words and phrasings. `held_out_cases` generates it and
`evaluate` scores any function that answers a case. `python -m demo.evaluate` scores a served checkpoint: it exports its
bundles, starts the three services on each, and prints a table of skills by bundles.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from demo.checkpoint import CHECKPOINT
from demo.clips import Clip
from demo.seeds import Split, stream
from demo.sizes import random_size
from demo.skills import SKILLS

TABLE = "demo-eval"  # marks the table in a Markdown file
_ASKED_AT_ONCE = 4


@dataclass(frozen=True)
class Case:
    """One held-out question, and the expected answer."""

    skill: str
    images: tuple[Image.Image, ...]
    clip: Clip | None
    seconds: float  # how long the clip lasts
    questions: tuple[str, ...]  # asked one after the other in one chat; the last is scored
    expected: str

    def right(self, answer: str) -> bool:
        """Whether the skill accepts this answer."""
        return SKILLS[self.skill].right(self.expected, answer)


Answer = Callable[[Case], str]


@dataclass(frozen=True)
class Score:
    """The number of correct answers of a skill, and the wrong ones."""

    skill: str
    total: int
    wrong: tuple[tuple[Case, str], ...]  # each with the answer given

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return 1 - len(self.wrong) / self.total


def held_out_cases(skill: str, count: int, seed: int = 0) -> list[Case]:
    """The first `count` held-out cases of a skill. A longer list starts with the shorter one."""
    cases = []
    for index in range(count):
        rng = stream(Split.HELD_OUT, seed, skill, index)
        # Two sizes, since a skill may have two pictures. Video files need even ones.
        sizes = [random_size(rng, Split.HELD_OUT) for _ in range(2)]
        if skill == "watch":
            sizes = [(width - width % 2, height - height % 2) for width, height in sizes]
        example = SKILLS[skill].example(rng, Split.HELD_OUT, sizes)
        questions = tuple(turn.question for turn in example.turns)
        cases.append(
            Case(skill, example.images, example.clip, rng.uniform(1.5, 4.0), questions, example.turns[-1].answer)
        )
    return cases


def evaluate(answer: Answer, skills: Iterable[str] = tuple(SKILLS), count: int = 200, seed: int = 0) -> list[Score]:
    """Ask every held-out question of the skills, some at once, and score the answers."""
    return [score(answer, held_out_cases(skill, count, seed)) for skill in skills]


def score(answer: Answer, cases: Sequence[Case]) -> Score:
    """The score on cases of one skill."""
    skill = cases[0].skill
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        asked = tqdm(
            pool.map(answer, cases),
            desc=skill,
            total=len(cases),
            unit="question",
            leave=False,
            disable=not sys.stderr.isatty(),
        )
        pairs = [(case, given) for case, given in zip(cases, asked, strict=True) if not case.right(given)]
    return Score(skill, len(cases), tuple(pairs))


def table(results: dict[str, list[Score]]) -> str:
    """Skills by bundles, in Markdown."""
    rows = [("skill", *results), ("---",) * (1 + len(results))]
    rows += [
        (same[0].skill, *(f"{result.accuracy:.1%}" for result in same)) for same in zip(*results.values(), strict=True)
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def put_table(text: str, content: str) -> str:
    """A Markdown text with the content between its marks for the table."""
    begin, end = f"<!-- {TABLE} -->\n", f"<!-- /{TABLE} -->"
    if begin not in text or end not in text:
        raise SystemExit(f"there is no place for the table: put {begin.strip()} and {end} on lines of their own")
    return re.sub(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _: content, text, flags=re.DOTALL)


def main() -> None:
    """The command line."""
    from demo.served import VARIANTS, bundle_of, while_serving  # noqa: PLC0415  # needs all services, unlike drawing

    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200, help="held-out questions of each skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skills", nargs="+", choices=list(SKILLS), default=list(SKILLS))
    parser.add_argument("--bundles", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--show", type=int, default=0, help="print N wrong answers of each skill and bundle")
    parser.add_argument("--json", action="store_true", help="print accuracies as JSON instead of a table")
    parser.add_argument("--into", type=Path, help="also put the table between its marks in this Markdown file")
    options = parser.parse_args()

    results: dict[str, list[Score]] = {}
    for name in options.bundles:
        with tempfile.TemporaryDirectory() as scratch:
            bundle = bundle_of(options.checkpoint, VARIANTS[name], Path(scratch))
            results[name] = while_serving(
                bundle, VARIANTS[name], lambda answer: evaluate(answer, options.skills, options.count, options.seed)
            )
        for result in results[name]:
            for case, answer_given in result.wrong[: options.show]:
                shown = " and ".join("x".join(map(str, image.size)) for image in case.images) or "no image"
                tqdm.write(f"{name}, {shown}: {' / '.join(case.questions)}", file=sys.stderr)
                tqdm.write(f"    right: {case.expected}\n    given: {answer_given}", file=sys.stderr)
    if options.json:
        accuracies = {name: {s.skill: s.accuracy for s in scores} for name, scores in results.items()}
        tqdm.write(json.dumps({"count": options.count, "seed": options.seed, "accuracy": accuracies}))
    else:
        tqdm.write(table(results), end="")
    if options.into is not None:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(put_table(text, table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
