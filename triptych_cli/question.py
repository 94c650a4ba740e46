"""What `triptych ask` asks: its question, images, videos and schema, from the arguments, files and stdin."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from serving.errors import Reason, ServiceError
from serving.files import read_regular
from triptych.media import Image, Video
from triptych.messages import Message, system, user
from triptych_cli.errors import CommandError

STDIN = "-"

_M = TypeVar("_M", Image, Video)

_PART = re.compile(r"messages\[(\d+)\]\.parts\[(\d+)\](?:\.\w+)*")
_FORM = re.compile(r"generation\.response_format(?:\.\w+)*")
_OPTION = re.compile(r"generation\.(\w+)")
_CLAMPING = re.compile(r"; clamp_max_tokens .*")


def complete(options: argparse.Namespace) -> None:
    """Find the question among the words, and report wrong usage.

    The question is the word that no flag takes. `--image` and `--video` take all words up to the next flag; if no other
    word is left, the question is the last word of theirs, unless that is a file.
    """
    if options.question is None:
        groups = [group for group in (*options.image, *options.video) if len(group) > 1]
        ends = [group for group in groups if not os.path.exists(group[-1])]  # noqa: PTH110  # Path raises for a long name
        if len(ends) != 1:
            options.wrong_usage("the question is missing; put it first, or after `--`")
        options.question = ends[0].pop()
    options.image = [*itertools.chain.from_iterable(options.image)]
    options.video = [*itertools.chain.from_iterable(options.video)]
    if [options.question, *options.image, *options.video].count(STDIN) > 1:
        options.wrong_usage("`-` is stdin and can be used once")


def read_messages(options: argparse.Namespace) -> list[Message]:
    """The conversation: images, then videos, then the question, behind the system message.

    Raises:
        CommandError: A file or stdin cannot be read.
    """
    media: list[Image | Video] = [_read(Image, path) for path in options.image]
    media += [_read(Video, path) for path in options.video]
    question = options.question
    if question == STDIN:
        question = _stdin().decode(errors="replace").strip()
    first = [] if options.system is None else [system(options.system)]
    return [*first, user(*media, question)]


def read_schema(path: Path) -> dict[str, Any]:
    """A JSON schema.

    Raises:
        CommandError: The file cannot be read or has no JSON object.
    """
    try:
        schema = json.loads(read_regular(path))
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(f"{path} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise CommandError(f"{path} is no JSON schema: it must be an object")
    return schema


def explained(error: ServiceError, messages: list[Message], options: argparse.Namespace) -> str:
    """The error's message with files and flags in the place of fields."""

    def file(place: re.Match[str]) -> str:
        part = messages[int(place[1])].parts[int(place[2])]
        return part.name if isinstance(part, Image | Video) else place[0]

    def flag(place: re.Match[str]) -> str:
        return f"--{place[1].replace('_', '-')}" if place[1] in vars(options) else place[0]

    message = _PART.sub(file, error.message)
    if options.schema is not None:
        message = _FORM.sub(str(options.schema), message)
    if error.reason == Reason.MAX_TOKENS_TOO_LARGE.name:  # the remedy is a field that no flag sets
        message = _CLAMPING.sub("; lower it, or leave it out", message)
    return _OPTION.sub(flag, message)


def _read(kind: type[_M], path: str) -> _M:
    if path == STDIN:
        return kind(_stdin(), name="stdin")
    try:
        return kind(Path(path), name=path)
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error


def _stdin() -> bytes:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise CommandError("nothing came on stdin")
    return data
