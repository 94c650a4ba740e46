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


def test_it_starts_the_services_and_compares(lines: tuple[Path, drawn.Lines]) -> None:
    """With a reference and a file, both are measured; the services are started for it and gone after."""
    folder, questions = lines
    file = drawn.write(folder / "few.jsonl", questions[:4])
    words = ("--reference", str(demo_bundle("fp32")), "--questions", str(file), "--compare", "2")
    document = _evaluate(*words, "--encoder", "float32")
    assert document["divergence"]["prompts"] == 2
    assert [(row["prefill_graph"], row["decode_graph"], row["encoder"]) for row in document["divergence"]["rows"]] == [
        ("int4", "int4", "float32"),
        ("int8", "int8", "float32"),
        ("int8", "int4", "float32"),
    ]
    assert all(row["decode"]["mean"] < 0.1 and row["decode"]["positions"] > 0 for row in document["divergence"]["rows"])
    (accuracy,) = document["accuracy"]
    assert (accuracy["encoder"], accuracy["total"]["questions"], accuracy["failed"]) == ("float32", 4, 0)
    assert accuracy["total"]["accuracy"] >= 0.75
