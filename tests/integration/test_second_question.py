"""What was seen is not encoded again, and never taken for something else."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

import exporter
from tests.checkpoints import CHECKPOINTS
from tests.pictures import noise, png
from tests.reference import Reference, Turn
from tests.system import triptych_system
from triptych import Client, Image, assistant, user
from vision_service.servicer import VisionServicer
from vlm.v1 import vision_pb2

TOKENS = 12
_SEEDS = itertools.count(100)


@dataclass(frozen=True)
class Watched:
    """A system whose vision service tells of every call."""

    client: Client
    reference: Reference
    encoded: list[str]

    def expected(self, *turns: Turn) -> list[int]:
        """The greedy tokens of transformers."""
        return self.reference.generate(self.reference.inputs(turns), TOKENS)


@pytest.fixture(scope="module", params=CHECKPOINTS)
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A small model of each family in fp32 behind all three services."""
    folder = tmp_path_factory.mktemp("second")
    checkpoint = CHECKPOINTS[request.param](folder / "checkpoint")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    encoded: list[str] = []
    encode = VisionServicer.Encode

    async def watching(
        self: VisionServicer, request: vision_pb2.EncodeRequest, context: Any
    ) -> AsyncIterator[vision_pb2.EncodeResponse]:
        encoded.append(request.request_id)
        async for response in encode(self, request, context):
            yield response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisionServicer, "Encode", watching)
        with triptych_system(bundle.root, max_queue=16) as address, Client(address) as client:
            yield Watched(client, Reference(checkpoint), encoded)


def picture(width: int = 160, height: int = 128) -> bytes:
    """A picture that no test has shown before."""
    return png(noise(width, height, next(_SEEDS)))


def test_a_follow_up_costs_no_encode(watched: Watched) -> None:
    """The second question about a picture does not reach the vision service, takes no time there, and is answered."""
    file = picture()
    first = watched.client.answer([user(Image(file), "Describe.")], max_tokens=TOKENS, request_id="one")
    assert watched.encoded[-1] == "one"
    assert first.timings.vision_seconds > 0
    turns: list[Turn] = [("user", [file, "Describe."]), ("assistant", ["A picture."]), ("user", ["Is it red?"])]
    second = watched.client.answer(
        [user(Image(file), "Describe."), assistant("A picture."), user("Is it red?")],
        max_tokens=TOKENS,
        request_id="two",
    )
    assert "two" not in watched.encoded
    assert second.timings.vision_seconds == 0
    assert second.usage.media_tokens == first.usage.media_tokens
    assert list(second.token_ids) == watched.expected(*turns)


def test_only_the_new_picture_is_encoded(watched: Watched) -> None:
    """Of a picture that was seen and one that was not the second is encoded, and each is in its own place."""
    seen, new = picture(), picture(96, 224)
    watched.client.answer([user(Image(seen), "Describe.")], max_tokens=1)
    for n, files in enumerate(((new, seen), (seen, new), (new, seen))):
        answer = watched.client.answer(
            [user(*map(Image, files), "Compare.")], max_tokens=TOKENS, request_id=f"pair-{n}"
        )
        assert list(answer.token_ids) == watched.expected(("user", [*files, "Compare."]))
    assert [request for request in watched.encoded if request.startswith("pair")] == ["pair-0"]


def test_pictures_never_mix(watched: Watched) -> None:
    """Two pictures of one size and one question, asked about in any order and at once: each has its own answer."""
    files = [picture(), picture()]
    expected = [watched.expected(("user", [file, "Describe."])) for file in files]
    assert expected[0] != expected[1]

    def ask(which: int) -> list[int]:
        messages = [user(Image(files[which]), "Describe.")]
        return list(watched.client.answer(messages, max_tokens=TOKENS).token_ids)

    with ThreadPoolExecutor(4) as pool:
        order = [0, 1, 1, 0, 0, 1, 0, 1]
        assert list(pool.map(ask, order)) == [expected[which] for which in order]


def test_other_pixels_are_encoded_anew(watched: Watched) -> None:
    """The same file with another pixel limit is another medium: it is encoded, once, and takes other tokens."""
    file = picture()
    sizes = []
    for n, bounds in enumerate(({}, {"max_pixels": 8192}, {}, {"max_pixels": 8192})):
        answer = watched.client.answer(
            [user(Image(file), "Describe.")], max_tokens=1, request_id=f"pixels-{n}", **bounds
        )
        sizes.append(answer.usage.media_tokens)
    assert sizes[0] == sizes[2] > sizes[1] == sizes[3]
    assert [request for request in watched.encoded if request.startswith("pixels")] == ["pixels-0", "pixels-1"]
