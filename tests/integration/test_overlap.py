"""A prompt is read while media of it are still being encoded: seen by the client, through all three services."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch

from tests.integration.conftest import Served
from tests.integration.conversations import ODD, to_messages
from tests.pictures import noise, png
from tests.reference import Turn
from tests.system import triptych_system
from triptych import Client, Delta, Progress
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.media import Advance, Cancelled, PreparedMedium

TURNS: list[Turn] = [
    ("user", [png(noise(192, 192, 20)), png(noise(192, 192, 21)), "and", ODD[1], "then", png(noise(96, 128, 22)), "?"])
]


def test_pictures_are_read_while_a_video_is_encoded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder holds the video back until the client has seen the prompt being read; tokens are the reference's."""
    seen = threading.Event()
    encode = Encoder.encode

    def held(
        self: Encoder,
        media: Sequence[PreparedMedium],
        cancelled: Cancelled = lambda: False,
        advance: Advance = lambda _: None,
    ) -> list[torch.Tensor]:
        if any(medium.grid.t > 1 for medium in media):
            assert seen.wait(60), "nobody has seen the prompt being read within 60 s"
        return encode(self, media, cancelled, advance)

    # A batch has room for one of the pictures or the video.
    with (
        triptych_system(served.bundle.root, vision={"max_batch_patches": 150}, read_ahead="on") as address,
        Client(address) as client,
    ):
        monkeypatch.setattr(Encoder, "encode", held)
        stages, tokens = [], []
        for event in client.chat(to_messages(TURNS), max_tokens=24, report_progress=True):
            if isinstance(event, Progress):
                stages.append(event.stage)
                if event.stage == "prefill":
                    assert event.done > 72
                    seen.set()
            elif isinstance(event, Delta):
                tokens += event.token_ids
    assert "encoding" in stages[stages.index("prefill") :]
    assert tokens == served.reference.generate(served.reference.inputs(TURNS), 24)
