"""Pages with generated parts. A part is between two comments with its name; the rest is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.docs import problems, reasons, settings, wire

FOLDER = Path(__file__).parents[2] / "docs"

PARTS: Mapping[str, Callable[[], str]] = {
    "wire": wire.markdown,
    "reasons": reasons.markdown,
    "settings": settings.markdown,
    "export_errors": problems.export_errors,
    "bundle_errors": problems.bundle_errors,
}
"""The generator of each part, by the name in its comments: `<!-- generated: wire -->` … `<!-- end of wire -->`."""

_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def write() -> None:
    """Update every page. Pages that are up to date are not written."""
    for page in _pages():
        old, new = _both(page)
        if old != new:
            page.write_text(new, encoding="utf-8")


def stale() -> list[str]:
    """Names of the pages that `write` would change."""
    both = {page.name: _both(page) for page in _pages()}
    return [name for name, (old, new) in both.items() if old != new]


def parts_in_use() -> list[str]:
    """Names of the parts that the pages have, in order."""
    return [match[2] for page in _pages() for match in _PART.finditer(page.read_text(encoding="utf-8"))]


def _pages() -> list[Path]:
    return sorted(FOLDER.glob("*.md"))


def _both(page: Path) -> tuple[str, str]:
    """The current and the expected text of a page."""
    old = page.read_text(encoding="utf-8")
    return old, _PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]().strip()}\n\n{match[3]}", old)
