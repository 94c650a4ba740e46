"""What serves all model families has no word of a single one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

PACKAGES = ("serving", "gateway", "vision_service", "decoder_service")

WORDS = (
    *("qwen3_vl", "qwen3vl", "mrope", "deepstack", "image_pad"),
    *("qwen2_5_vl", "qwen25vl", "tokens_per_second", "fullatt"),
    *("phi4", "crop_size"),
)
"""Names of the families and of their inventions, in lower case."""

FAMILIES = ("qwen", "qwen3", "qwen3_vl", "qwen2_5_vl", "phi4_multimodal")
"""Packages of the families, and of what some of them share."""

ROOMS = {
    "serving/families.py",  # the schema of bundles
    "vision_service/families/registry.py",
    "decoder_service/families/registry.py",
}
"""Where they may be, beside the families' own packages."""


def found(text: str) -> list[str]:
    """The words that are in a text."""
    return [word for word in WORDS if word in text.lower()]


def _modules(package: str) -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        yield name, path.read_text(encoding="utf-8")


def _is_room(name: str) -> bool:
    return name in ROOMS or any(f"/families/{family}/" in name for family in FAMILIES)


def test_no_word_of_a_family_outside_its_rooms() -> None:
    """A second family finds nothing of the first in its way."""
    modules = [module for package in PACKAGES for module in _modules(package)]
    assert {name: words for name, text in modules if not _is_room(name) and (words := found(text))} == {}


def test_the_words_are_in_the_rooms() -> None:
    """Negative control: the same search finds them where they belong."""
    modules = dict(module for package in PACKAGES for module in _modules(package))
    for name in (*ROOMS, *(f"vision_service/families/{family}/tower.py" for family in FAMILIES[2:])):
        assert found(modules[name]), name
