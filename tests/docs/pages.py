"""The pages as tests read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "demo/README.md", "recipes/demo_model/README.md")),
    ROOT / "benchmarks" / "peers" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
"""The front page, those of packages, and everything under docs."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Fenced text.

    Attributes:
        page: Where it stands.
        language: After the fence.
        text: What is between the fences.
    """

    page: Path
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(page, match[1], match[2]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page, outside of fenced blocks."""
    return [match[1] or match[2] for match in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for match in _HEADING.finditer(prose(page)):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "").lower()
        base = anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
