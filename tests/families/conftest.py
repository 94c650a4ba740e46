"""Checkpoints of more shapes than `make test` has, served."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import QWEN2_5_SHAPES, make_qwen2_5_vl
from tests.integration.conftest import Served, serving
from tests.measuring import unmeasured

MORE: dict[str, dict[str, Any]] = {
    # The heads of the published 3B, in both halves, and its groups of 8 query heads.
    "heads_of_3b": {
        "hidden": 2048,
        "heads": 16,
        "kv_heads": 2,
        "layers": 2,
        "mrope_section": (16, 24, 24),
        "vision_hidden": 160,
        "vision_heads": 2,
        "initializer_range": 0.03,
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}},
    "as_published": {"dialect": "published", "tie": False},
    "deep_encoder": {"vision_depth": 9, "full_attention": (2, 5, 8), "window": 84, "tokens_per_second": 4},
}

SHAPES: dict[str, Callable[[Path], Path]] = {
    name: functools.partial(make_qwen2_5_vl, **shape) for name, shape in {**QWEN2_5_SHAPES, **MORE}.items()
}


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost, unless a test does."""
    with unmeasured():
        yield


@pytest.fixture(scope="session", params=SHAPES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Each shape in turn, exported in fp32."""
    with serving(SHAPES[request.param], tmp_path_factory.mktemp(request.param)) as system:
        yield system
