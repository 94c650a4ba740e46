"""The pages hang together: links lead somewhere, examples are at least well-formed, nothing private is in them."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, blocks, links, prose
from tools.docs import settings
from triptych_cli import main as cli

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
_OUTSIDE = ("http://", "https://", "mailto:")

# Output and drawings are not checked; these are.
_CHECKED = {"python", "json", "console", "sh", "yaml", "mermaid", "proto", "js", "text", ""}


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    """A relative link leads to a file of the repository, and its fragment to a heading of that page."""
    page = ROOT / name
    broken = []
    for link in links(page):
        if link.startswith(_OUTSIDE):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to each page of docs."""
    index = {link.partition("#")[0] for link in links(ROOT / "docs" / "README.md")}
    assert {page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"} <= index


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_well_formed(name: str) -> None:
    """Python parses, JSON parses, and the words of a command line can be told apart."""
    for block in blocks(ROOT / name):
        assert block.language in _CHECKED, f"a block of {block.language!r}"
        match block.language:
            case "python":
                ast.parse(block.text)
            case "json":
                json.loads(block.text)
            case "console":
                for command in commands(block.text):
                    shlex.split(command, comments=True)


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_are_accepted(name: str) -> None:
    """Each `triptych …` and `python -m SERVICE …` on a page is one that is taken: its flags exist."""
    parser = cli._parser()
    services = dict(settings.SERVICES)
    for block in blocks(ROOT / name):
        for command in commands(block.text) if block.language == "console" else []:
            match _words(command):
                case ["triptych", *rest] if rest:
                    parser.parse_args(rest)
                case ["python", "-m", module, *rest] if module in services:
                    known = {f"--{field.replace('_', '-')}" for field in services[module].model_fields}
                    assert {word for word in rest if word.startswith("--")} <= known, command


def _words(command: str) -> list[str]:
    """The words of a command up to a pipe or the like, without variables before it and the path of the program."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=";|>&")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: word[0] not in ";|>&", lexer))
    program = next((i for i, word in enumerate(words) if "=" not in word), 0)
    return [Path(word).name if i == program else word for i, word in enumerate(words)][program:]


def commands(text: str) -> list[str]:
    """The commands of a console block: lines after `$ `, with their continuations and here-documents left out."""
    joined = re.sub(r"\\\n>? *", " ", text)
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ") and "<<" not in line]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_whole(name: str) -> None:
    """Every row of a table has as many cells as its head: a bar in a cell is escaped."""
    for run in re.findall(r"(?:^\|.*\|$\n?)+", prose(ROOT / name), re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in run.splitlines()]
        assert len(set(rows)) == 1, run


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_drawings_are_well_formed_and_described(path: Path) -> None:
    """A drawing is XML with a title and a description for those who cannot see it, and fetches nothing."""
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  # it is our own file
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:title", space) is not None
    assert root.find("svg:desc", space) is not None
    assert not re.search(r"(?:href|src|url)\s*[=(]\s*[\"']?https?:", path.read_text(encoding="utf-8"))
