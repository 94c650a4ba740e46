"""What is generated from the code is what the code says now."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from exporter.errors import ExportProblem
from serving.bundle_error import BundleProblem
from serving.errors import Reason
from serving.problem import Problem
from tools.docs import pages, settings, wire

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "vision_service", "decoder_service", "serving")


def test_generated_parts_are_fresh() -> None:
    """`python -m tools.docs` would change nothing; where this fails, run `make docs`."""
    assert pages.stale() == []


def test_every_part_is_on_a_page() -> None:
    """Each generated part stands on exactly one page, so that none can be lost with its markers."""
    assert sorted(pages.parts_in_use()) == sorted(pages.PARTS)


def test_the_wire_page_has_every_message_call_and_field() -> None:
    """Nothing of the descriptors is left out."""
    text = wire.markdown()
    for file in wire.descriptors().file:
        for message in file.message_type:
            assert f"### {message.name}\n" in text
            assert all(f"| `{field.name}` | {field.number} |" in text for field in message.field)
        for enum in file.enum_type:
            assert all(f"| `{value.name}` | {value.number} |" in text for value in enum.value)
        for service in file.service:
            assert all(f"| `{method.name}` |" in text for method in service.method)


def test_comments_of_the_protos_are_on_the_wire_page() -> None:
    """A field's comment is in the row of the field, with the bars of control tokens escaped."""
    text = wire.markdown()
    assert "(`<\\|im_end\\|>`, `<\\|image_pad\\|>`) stay plain text. |" in text
    assert "| `seed` | 9 | optional uint64 | Makes sampling repeatable on one server build." in text
    assert "| `logit_bias` | 11 | map of uint32 to float |" in text


@pytest.mark.parametrize("module", [module for module, _ in settings.SERVICES])
def test_the_settings_have_every_field(module: str) -> None:
    """Each setting of each service is in a table, with its flag and its variable."""
    text = settings.markdown()
    fields = dict(settings.SERVICES)[module].model_fields
    assert all(f"`--{name.replace('_', '-')}`" in text and f"{name.upper()}`" in text for name in fields)


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_reason_says_who_fails_for_it(reason: Reason) -> None:
    """`raised_by` names exactly the services whose code fails for the reason; what `serving` raises, all may."""
    packages = [package for package in PACKAGES if reason.name in _raised()[package]]
    names = "any" if "serving" in packages else ", ".join(package.removesuffix("_service") for package in packages)
    assert names == reason.value.raised_by


def test_the_search_for_reasons_can_see() -> None:
    """Negative control: raising a reason is told from comparing with it."""
    assert "ENCODER_SETTINGS_DIFFER" in _raised()["vision_service"]
    assert "ENCODER_SETTINGS_DIFFER" not in _raised()["gateway"]  # which compares


@cache
def _raised() -> dict[str, set[str]]:
    """The reasons that each package passes on as members; for a comparison it takes the member's `name`."""
    return {
        package: {
            name
            for path in (ROOT / package).rglob("*.py")
            for name in re.findall(r"\bReason\.([A-Z_]+)\b(?!\.name)", path.read_text(encoding="utf-8"))
        }
        for package in PACKAGES
    }


@pytest.mark.parametrize("problems", [ExportProblem, BundleProblem])
def test_every_problem_is_raised_and_has_a_remedy(problems: type[Problem]) -> None:
    """No message of the tables is one that the code never gives, and none lacks a remedy."""
    packages = ("exporter", "serving", "vision_service", "decoder_service", "triptych")
    code = "".join(path.read_text(encoding="utf-8") for name in packages for path in (ROOT / name).rglob("*.py"))
    raised = set(re.findall(rf"\b{problems.__name__}\.([A-Z0-9_]+)\b", code))
    assert raised == set(problems.__members__)
    assert all(problem.message and problem.remedy for problem in problems)
