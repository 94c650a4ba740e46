"""Who follows the quick start sees what stands there."""

from __future__ import annotations

import pytest

from tools.docs import transcript


@pytest.mark.e2e
def test_the_outputs_are_what_the_commands_print() -> None:
    """The page shows what its commands print now. Where this fails, run `python -m tools.docs --run` and read it."""
    ran, shown = transcript.run(), transcript.shown()
    assert {name: transcript.steady(text) for name, text in shown.items()} == {
        name: transcript.steady(text) for name, text in ran.items()
    }
