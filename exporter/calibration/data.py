"""What a model is calibrated on: the pictures and prompts of the package, or those in a directory of the user's.

A directory holds pictures and, if it likes, `prompts.jsonl`: an object a line, with "prompt" and, if there are any,
"image" (a file of the directory) and "answer". Without that file each picture is asked a question of the package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from exporter.errors import ExportError, ExportProblem, one_line
from exporter.pictures import KINDS
from serving.errors import ServiceError
from vision_service.images import decode_image
from vision_service.media import PATH

PROMPTS = "prompts.jsonl"
"""The file of prompts in a directory."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_MOST_PIXELS = 1 << 27
_LONGEST_EDGE = 512  # 256 tokens at most: many pictures say more than many patches of one
_ON_PICTURES = Path(__file__).with_name("on_pictures.jsonl")
_ON_TEXT = Path(__file__).with_name("on_text.jsonl")
_FIRST_PICTURE = 100  # the pictures before are what the encoder's types are measured on
_FIELDS = {"prompt", "image", "answer"}


@dataclass(frozen=True, eq=False)
class Example:
    """A question, and what is said to it.

    Attributes:
        prompt: what is asked.
        answer: what is answered; empty where nobody knows.
        picture: what is asked about, in RGB; None: nothing.
    """

    prompt: str
    answer: str = ""
    picture: Image.Image | None = None


@dataclass(frozen=True, eq=False)
class CalibrationData:
    """Examples, in the order in which they are read.

    Attributes:
        name: "built-in", or the name of the directory.
        examples: at least one.
    """

    name: str
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of every text and pixel, as hex."""
        digest = hashlib.sha256()
        for example in self.examples:
            picture = example.picture
            size = None if picture is None else picture.size
            digest.update(json.dumps([example.prompt, example.answer, size]).encode())
            digest.update(b"" if picture is None else picture.tobytes())
        return digest.hexdigest()

    def without_pictures(self) -> CalibrationData:
        """The examples that a model without an encoder can read.

        Raises:
            ExportError: there are none.
        """
        examples = tuple(example for example in self.examples if example.picture is None)
        if not examples:
            raise ExportError(ExportProblem.NO_CALIBRATION_TEXT, name=self.name, prompts=PROMPTS)
        return CalibrationData(self.name, examples)


def built_in() -> CalibrationData:
    """What the package ships: texts in several languages, and questions about pictures that are drawn."""
    questions = [Example(line["prompt"], line["answer"]) for line in _lines(_ON_PICTURES)]
    kinds = list(KINDS.values())
    shown = [
        Example(question.prompt, question.answer, kinds[index % len(kinds)](_FIRST_PICTURE + index))
        for index, question in enumerate(questions)
    ]
    told = [Example(line["prompt"], line["answer"]) for line in _lines(_ON_TEXT)]
    return CalibrationData("built-in", tuple(_in_turns(shown, told)))


def read_directory(folder: Path) -> CalibrationData:
    """Read the examples of a directory.

    Raises:
        ExportError: it is none, holds nothing to read, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise ExportError(ExportProblem.NO_CALIBRATION_DIRECTORY, folder=folder, prompts=PROMPTS)
    if (folder / PROMPTS).is_file():
        examples = [_example(folder, line) for line in _lines(folder / PROMPTS)]
    else:
        questions = [line["prompt"] for line in _lines(_ON_PICTURES)]
        pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        examples = [
            Example(questions[index % len(questions)], picture=_picture(path)) for index, path in enumerate(pictures)
        ]
    if not examples:
        raise ExportError(
            ExportProblem.NO_CALIBRATION_DATA, folder=folder, suffixes=", ".join(_SUFFIXES), prompts=PROMPTS
        )
    return CalibrationData(folder.resolve().name, tuple(examples))


def _example(folder: Path, line: Mapping[str, Any]) -> Example:
    picture = _picture(folder / line["image"]) if line.get("image") else None
    return Example(line["prompt"], line.get("answer", ""), picture)


def _lines(path: Path) -> Iterable[Mapping[str, Any]]:
    """The objects of a file of prompts; empty lines are none."""
    try:
        texts = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(ExportProblem.CALIBRATION_UNREADABLE, path=path, error=one_line(error)) from error
    for number, text in enumerate(texts, start=1):
        if text.strip():
            yield _line(path, number, text)


def _line(path: Path, number: int, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    wrong = (
        not isinstance(value, dict)
        or not value.get("prompt")
        or not value.keys() <= _FIELDS
        or not all(isinstance(entry, str) for entry in value.values())
    )
    if wrong:
        raise ExportError(ExportProblem.CALIBRATION_LINE, number=number, path=path)
    entry: Mapping[str, Any] = value
    return entry


def _picture(path: Path) -> Image.Image:
    try:
        picture = decode_image(path.read_bytes(), max_pixels=_MOST_PIXELS)
    except OSError as error:
        raise ExportError(
            ExportProblem.CALIBRATION_PICTURE_MISSING,
            path=path,
            error=error.strerror or one_line(error),
            prompts=PROMPTS,
        ) from error
    except ServiceError as error:
        said = error.message.removeprefix(f"{PATH}: ").rstrip(".")
        raise ExportError(ExportProblem.CALIBRATION_PICTURE_DAMAGED, path=path, error=said) from error
    picture.thumbnail((_LONGEST_EDGE, _LONGEST_EDGE), Image.Resampling.BICUBIC)
    return picture


def _in_turns(*lists: list[Example]) -> Iterable[Example]:
    """One of each list after another, so that a limit on tokens leaves some of every kind."""
    for index in range(max(map(len, lists))):
        for examples in lists:
            if index < len(examples):
                yield examples[index]
