"""Three services give what transformers gave with its own image processor and PEFT: run by `tests/phi4/run`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import exporter
from tests.integration.whole import Whole
from tests.measuring import unmeasured
from tests.phi4.shapes import CONVERSATIONS, SHAPES, TOKENS, Picture, Turn
from tests.pictures import noise, png
from tests.system import triptych_system
from triptych import Client, Image, Message

FOLDER = Path(os.environ.get("TRIPTYCH_PHI4_REFERENCE", "build/phi4/reference"))
"""What `tests.phi4.reference` wrote."""

WITH_IMAGES = [
    name for name, turns in CONVERSATIONS.items() if any(isinstance(p, Picture) for _, ps in turns for p in ps)
]


@dataclass(frozen=True)
class Served:
    """A checkpoint, served and in one process.

    Attributes:
        folder: The reference's files of this shape.
        crop: Edge of a crop in pixels.
        client: Of the three services.
        whole: The bundle without services.
    """

    folder: Path
    crop: int
    client: Client
    whole: Whole

    def messages(self, turns: list[Turn]) -> list[Message]:
        """The conversation as the client says it."""

        def part(value: str | Picture) -> str | Image:
            return Image(png(noise(*value.size(self.crop), value.seed))) if isinstance(value, Picture) else value

        return [Message(role, tuple(part(value) for value in parts)) for role, parts in turns]

    def expected(self, name: str) -> Any:
        """What transformers made of a conversation."""
        return np.load(self.folder / f"{name}.npz")


@pytest.fixture(
    scope="session", params=[(name, layout) for name in SHAPES for layout in ("native", "published")], ids=" / ".join
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Each shape in both layouts, exported in fp32."""
    name, layout = request.param
    with contextlib.ExitStack() as stack:
        stack.enter_context(unmeasured())
        folder = tmp_path_factory.mktemp("phi4")
        bundle = exporter.export(FOLDER / name / layout, folder / "bundle", precision="fp32", progress=False)
        address = stack.enter_context(triptych_system(bundle.root))
        client = stack.enter_context(Client(address))
        crop = SHAPES[name].get("vision", {}).get("crop_size", 56)
        yield Served(FOLDER / name, crop, client, Whole(bundle))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_grids_and_greedy_tokens_equal_transformers(served: Served, name: str) -> None:
    """Through the gateway: the prompt, the layout of its images, and 24 tokens."""
    expected, messages = served.expected(name), served.messages(CONVERSATIONS[name])
    answer = served.client.answer(
        messages, max_tokens=TOKENS, temperature=0, ignore_eos=True, return_prompt_token_ids=True, detail="original"
    )
    assert list(answer.prompt_token_ids) == expected["ids"].tolist()
    assert answer.usage.media_tokens == len(expected["features"])
    assert list(answer.token_ids) == expected["tokens"].tolist()
    counted = served.client.count(messages, detail="original")
    assert counted.prompt_tokens == len(expected["ids"])
    assert [layout.grid for layout in counted.media] == [tuple(grid) for grid in expected["grids"].tolist()]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_features_and_logits_equal_transformers(served: Served, name: str) -> None:
    """Features within 2e-5 of the greatest of them, logits within 1e-4."""
    expected = served.expected(name)
    laid = served.whole.lay_out(served.messages(CONVERSATIONS[name]))
    rows = expected["features"]
    if len(rows):
        np.testing.assert_allclose(laid.features, rows, rtol=0, atol=2e-5 * np.abs(rows).max())
    np.testing.assert_allclose(served.whole.logits(laid), expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", WITH_IMAGES)
def test_other_features_give_other_logits(served: Served, name: str) -> None:
    """Negative control: with the rows of each conversation in reverse no check above passes."""
    laid = served.whole.lay_out(served.messages(CONVERSATIONS[name]))
    assert np.abs(served.whole.logits(laid, laid.features[::-1].copy()) - served.expected(name)["logits"]).max() > 1e-2
