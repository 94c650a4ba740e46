"""`triptych evaluate` on the demo model: what it knows it answers rightly, and what it cannot see it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Up, run
from tests.evaluation import drawn
from triptych.bundles import demo_bundle

pytestmark = pytest.mark.e2e

_OF_A_KIND = 15


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, drawn.Lines]:
    """Questions of two kinds, and the folder of their pictures."""
    folder = tmp_path_factory.mktemp("questions")
    return folder, [*drawn.colours(folder, _OF_A_KIND), *drawn.signs(folder, _OF_A_KIND)]


def _evaluate(*words: str) -> dict[str, Any]:
    finished = run("evaluate", str(demo_bundle()), *words, "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    document: dict[str, Any] = json.loads(finished.stdout)
    return document


def _accuracies(system: Up, file: Path) -> dict[str, float]:
    (found,) = _evaluate("--questions", str(file), "--address", system.grpc)["accuracy"]
    assert found["failed"] == 0
    return {name: score["accuracy"] for name, score in found["categories"].items()}


def test_the_demo_model_answers_what_it_knows(int4_system: Up, lines: tuple[Path, drawn.Lines]) -> None:
    """Colours by multiple choice and signs by ANLS, nearly all."""
    folder, questions = lines
    found = _accuracies(int4_system, drawn.write(folder / "right.jsonl", questions))
    assert found["colour"] >= 0.8
    assert found["sign"] >= 0.8


def test_wrong_pictures_score_lower(int4_system: Up, lines: tuple[Path, drawn.Lines]) -> None:
    """Negative control: each question is asked about the next one's picture."""
    folder, questions = lines
    turned = [*questions[1:_OF_A_KIND], questions[0], *questions[_OF_A_KIND + 1 :], questions[_OF_A_KIND]]
    wrong = [{**one, "images": other["images"]} for one, other in zip(questions, turned, strict=True)]
    found = _accuracies(int4_system, drawn.write(folder / "wrong.jsonl", wrong))
    assert found["colour"] <= 0.6
    assert found["sign"] <= 0.6


def test_it_starts_the_services(lines: tuple[Path, drawn.Lines]) -> None:
    """Without an address they are started for it, with the encoder that is named, and gone after."""
    folder, questions = lines
    document = _evaluate(
        *("--questions", str(drawn.write(folder / "few.jsonl", questions)), "--limit", "4", "--encoder", "bfloat16")
    )
    (accuracy,) = document["accuracy"]
    assert (accuracy["encoder"], accuracy["total"]["questions"], accuracy["failed"]) == ("bfloat16", 4, 0)
    assert accuracy["total"]["accuracy"] >= 0.75
