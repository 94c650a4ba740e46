"""The tests of models that take text only, on more shapes of Qwen3 in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import exporter
from serving.bundle import Bundle
from tests.exporter.families.qwen3 import test_export
from tests.families.shapes import TEXT_ONLY
from tests.integration import test_text_only
from tests.integration.test_text_only import TextOnly, serving_text

test_ids_logits_and_greedy_tokens = test_export.test_ids_logits_and_greedy_tokens_are_transformers
test_a_changed_rotation_is_seen = test_export.test_a_changed_rotation_is_seen
test_two_turns = test_text_only.test_two_turns_are_transformers
test_names_of_image_tokens_are_text = test_text_only.test_names_of_image_tokens_are_text


@pytest.fixture(scope="module", params=TEXT_ONLY)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each shape in turn."""
    return TEXT_ONLY[request.param](tmp_path_factory.mktemp(request.param) / "checkpoint")


@pytest.fixture(scope="module")
def exact(source: Path) -> Bundle:
    """Its fp32 bundle."""
    return exporter.export(source, source.parent / "fp32", precision="fp32")


@pytest.fixture(scope="module", params=TEXT_ONLY)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextOnly]:
    """Each shape in turn, served."""
    with serving_text(TEXT_ONLY[request.param], tmp_path_factory.mktemp(request.param)) as system:
        yield system
