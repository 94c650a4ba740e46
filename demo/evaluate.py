"""Score anything that answers questions about images, on examples that training never saw.

`python -m demo.evaluate` prints a table of skills by variants of a checkpoint.

The held-out set has its own random stream, image sizes and phrasings. `held_out_cases` draws it and `evaluate` scores a
callable `answer(images, question) -> str`, be it transformers, a bundle or the whole running system.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from demo.checkpoint import CHECKPOINT
from demo.seeds import Split, stream
from demo.sizes import random_size
from demo.skills import SKILLS

Answer = Callable[[Sequence[Image.Image], str], str]


@dataclass(frozen=True)
class Case:
    """One held-out question, and the answer that a perfect model gives."""

    skill: str
    images: tuple[Image.Image, ...]
    question: str
    expected: str

    def right(self, answer: str) -> bool:
        """Whether the skill accepts this answer."""
        return SKILLS[self.skill].right(self.expected, answer)


@dataclass(frozen=True)
class Score:
    """How many cases of a skill were answered rightly, and the ones that were not."""

    skill: str
    total: int
    wrong: tuple[tuple[Case, str], ...]  # each with the answer given

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return 1 - len(self.wrong) / self.total


def held_out_cases(skill: str, count: int, seed: int = 0) -> list[Case]:
    """The first `count` held-out cases of a skill: a longer list begins with the shorter one."""
    cases = []
    for index in range(count):
        rng = stream(Split.HELD_OUT, seed, skill, index)
        example = SKILLS[skill].example(rng, Split.HELD_OUT, [random_size(rng, Split.HELD_OUT)])
        turn = example.turns[0]
        cases.append(Case(skill, example.images, turn.question, turn.answer))
    return cases


def score(cases: Sequence[Case], answers: Sequence[str]) -> Score:
    """The score of answers already given, in the cases' order (all cases of one skill)."""
    pairs = list(zip(cases, answers, strict=True))
    return Score(cases[0].skill, len(cases), tuple(pair for pair in pairs if not pair[0].right(pair[1])))


def evaluate(answer: Answer, skills: Iterable[str] = tuple(SKILLS), count: int = 200, seed: int = 0) -> list[Score]:
    """Ask every held-out question of the skills, one after another, and score the answers."""
    scores = []
    for skill in skills:
        cases = held_out_cases(skill, count, seed)
        asked = tqdm(cases, desc=skill, unit="question", leave=False, disable=not sys.stderr.isatty())
        scores.append(score(cases, [answer(case.images, case.question) for case in asked]))
    return scores


VARIANTS = {
    "fp32": {"int4": False, "deepstack": True},
    "int4": {"int4": True, "deepstack": True},
    "fp32-no-deepstack": {"int4": False, "deepstack": False},
    "int4-no-deepstack": {"int4": True, "deepstack": False},
}


def main() -> None:
    """The command line: a table of skills by variants of a checkpoint, run through transformers."""
    from demo.local import LocalModel  # noqa: PLC0415  # torch is not needed to score a running system

    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200, help="held-out questions of each skill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skills", nargs="+", choices=list(SKILLS), default=list(SKILLS))
    default = ["fp32", "int4", "int4-no-deepstack"]
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=default)
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers of each kind")
    options = parser.parse_args()

    tqdm.write(f"| skill | {' | '.join(options.variants)} |")
    tqdm.write(f"|---|{'---|' * len(options.variants)}")
    models = {name: LocalModel(options.checkpoint, **VARIANTS[name]) for name in options.variants}
    for skill in options.skills:
        cases = held_out_cases(skill, options.count, options.seed)
        chats = [(case.images, case.question) for case in cases]
        scores = {name: score(cases, model.answer_all(chats)) for name, model in models.items()}
        tqdm.write(f"| {skill} | {' | '.join(f'{result.accuracy:.1%}' for result in scores.values())} |")
        for name, result in scores.items():
            for case, answer in result.wrong[: options.show]:
                size = "x".join(map(str, case.images[0].size)) if case.images else "no image"
                tqdm.write(f"  {name} {size}: {case.question!r}\n    right {case.expected!r}\n    given {answer!r}")


if __name__ == "__main__":
    main()
