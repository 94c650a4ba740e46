"""The file of questions: what is taken, and every fault by its line and field."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.questions import ChoiceQuestion, QuestionFile, ShortQuestion
from tests.docs.pages import ROOT, blocks

CHOICE: dict[str, Any] = {"id": "1", "images": ["a.png"], "question": "?", "choices": ["x", "y"], "answer": "B"}
SHORT: dict[str, Any] = {"id": "2", "images": [], "question": "?", "answers": ["x"], "metric": "anls"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """It holds a picture."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


def _file(folder: Path, *lines: object) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def _refusal(folder: Path, *lines: object) -> str:
    with pytest.raises(EvaluationError) as refused:
        QuestionFile(_file(folder, *lines)).check_pictures()
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_both_kinds_are_read_and_blank_lines_passed_over(folder: Path) -> None:
    """Pictures lie beside the file; a limit takes the first questions."""
    path = _file(folder, CHOICE, "", SHORT, "  ")
    file = QuestionFile(path)
    file.check_pictures()
    first, second = file.questions
    assert isinstance(first, ChoiceQuestion)
    assert isinstance(second, ShortQuestion)
    assert file.pictures(first) == [(folder / "a.png").read_bytes()]
    assert (first.letters, first.category, first.prompt) == ("AB", "", None)
    assert [question.id for question in QuestionFile(path, 1).questions] == ["1"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        (b"\xff".decode("latin-1").join(['{"id": "', '"}']), "choices: there must be choices and answer, or answers"),
        ({**CHOICE, "answers": ["x"]}, "choices: there must be choices and answer, or answers and metric"),
        ({**SHORT, "metric": "bleu"}, "metric: input should be 'exact', 'anls' or 'relaxed'"),
        ({name: value for name, value in SHORT.items() if name != "metric"}, "metric: field required"),
        ({**SHORT, "answers": []}, "answers: "),
        ({**SHORT, "answers": [3]}, "answers.0: "),
        ({**CHOICE, "answer": "C"}, "answer: is C, and the last of the choices is B"),
        ({**CHOICE, "answer": "b"}, "answer: "),
        ({**CHOICE, "choices": ["x"]}, "choices: "),
        ({**CHOICE, "choices": ["x", " "]}, "choices.1: "),
        ({**CHOICE, "id": 7}, "id: "),
        ({**CHOICE, "images": "a.png"}, "images: "),
        ({**CHOICE, "picture": "a.png"}, "picture: "),
        ({**CHOICE, "question": ""}, "question: "),
    ],
)
def test_a_bad_line_is_named_with_its_field(folder: Path, line: object, fault: str) -> None:
    """One sentence, which has the number of the line."""
    assert f"questions.jsonl has one bad line: line 2: {fault}" in _refusal(folder, {**SHORT, "id": "0"}, line)


def test_every_bad_line_is_named(folder: Path) -> None:
    """Faults of several lines come together, and two of one line; from the 21st on only their numbers."""
    message = _refusal(folder, CHOICE, "{", {**SHORT, "metric": "?", "id": ""}, CHOICE)
    assert "has 3 bad lines: line 2: is not JSON" in message
    assert "line 3: id: " in message
    assert "; metric: " in message
    assert message.endswith("line 4: id: '1' is the id of line 1, too")
    assert _refusal(folder, *["{"] * 23).endswith("; and lines 21, 22, 23")


def test_pictures_that_cannot_be_shown_are_named(folder: Path) -> None:
    """A missing one, one that is none, and one that breaks off; those of questions left out are not looked at."""
    (folder / "text.png").write_text("this is text")
    whole = (folder / "a.png").read_bytes()
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    lines = [
        {**CHOICE, "id": str(index), "images": ["a.png", name]}
        for index, name in enumerate(("a.png", "nowhere.png", "text.png", "half.png", "."))
    ]
    message = _refusal(folder, *lines)
    assert "has 4 bad lines: line 2: images.1: nowhere.png does not exist; line 3: images.1: text.png is no image" in (
        message
    )
    assert "line 4: images.1: half.png " in message
    assert "line 5: images.1: . cannot be read (Is a directory)" in message
    QuestionFile(_file(folder, *lines), 1).check_pictures()


def test_a_file_without_questions_is_refused(folder: Path) -> None:
    """As one that is not there."""
    assert "has no questions" in _refusal(folder, "", " ")
    with pytest.raises(EvaluationError, match="No such file"):
        QuestionFile(folder / "nowhere.jsonl")


def test_the_pages_examples_are_taken(folder: Path) -> None:
    """What the page shows as a line of each kind is one."""
    examples = [block.text for block in blocks(ROOT / "docs" / "quality.md") if block.language == "json"]
    first, second = QuestionFile(_file(folder, *(example.strip() for example in examples))).questions
    assert isinstance(first, ChoiceQuestion)
    assert isinstance(second, ShortQuestion)


def test_the_pages_script_writes_files_that_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with the fields of the public sets become questions with the right letters, answers and metrics."""
    (script,) = (block.text for block in blocks(ROOT / "docs" / "quality.md") if "load_dataset" in block.text)
    picture = Image.new("RGBA", (8, 8))
    options = {"A": "x", "B": "y", "C": "nan", "D": None}
    rows: dict[str, dict[str, Any]] = {
        "lmms-lab/ai2d": {"question": "?", "options": ["w", "x", "y", "z"], "answer": "2"},
        "lmms-lab/MMBench": {"question": "?", "hint": "A hint.", **options, "answer": "B", "category": "ocr"},
        "lmms-lab/ChartQA": {"question": "?", "answer": "0.57", "type": "human_test"},
        "lmms-lab/DocVQA": {"question": "?", "answers": ["a", "b"]},
    }

    def load_dataset(name: str, config: str = "", *, split: str) -> list[dict[str, Any]]:
        return [{**rows[name], "image": picture}] * 3

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.chdir(tmp_path)
    exec(script, {})  # noqa: S102  # it is the page's own
    found: dict[str, Any] = {}
    for name in ("ai2d", "mmbench", "chartqa", "docvqa"):
        file = QuestionFile(tmp_path / "questions" / f"{name}.jsonl")
        file.check_pictures()
        assert len(file.questions) == 3
        found[name] = file.questions[0].model_dump(exclude={"id", "images"}, exclude_defaults=True)
    assert found == {
        "ai2d": {"question": "?", "choices": ("w", "x", "y", "z"), "answer": "C"},
        "mmbench": {"question": "A hint.\n?", "choices": ("x", "y"), "answer": "B", "category": "ocr"},
        "chartqa": {"question": "?", "answers": ("0.57",), "metric": "relaxed", "category": "human_test"},
        "docvqa": {"question": "?", "answers": ("a", "b"), "metric": "anls"},
    }
