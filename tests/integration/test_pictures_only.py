"""A model that takes pictures and no videos: both doors say so, and refuse what it does not take by name."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

import exporter
import triptych
from tests.phi4_checkpoints import IMAGE, make_phi4
from tests.pictures import noise, png
from tests.system import Address, triptych_system
from vlm.v1 import gateway_pb2, gateway_pb2_grpc

PICTURE = png(noise(70, 50))
QUESTION = "What is it?"


@dataclass(frozen=True)
class PicturesOnly:
    """A small random Phi-4-multimodal in the layout of the published files, served."""

    address: Address
    client: triptych.Client

    def post(self, content: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        """Status and body of a chat at the HTTP door."""
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
        headers = {"content-type": "application/json"}
        url = f"{self.address.http}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310  # it is http
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  # as above
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PicturesOnly]:
    """By all three services."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    checkpoint = make_phi4(folder / "checkpoint", "published")
    bundle = exporter.export(checkpoint, folder / "bundle", precision="fp32", progress=False)
    with triptych_system(bundle.root) as address, triptych.Client(address) as client:
        yield PicturesOnly(address, client)


def test_both_doors_say_what_it_takes(served: PicturesOnly) -> None:
    """Images, and no video."""
    with grpc.insecure_channel(served.address) as channel:
        listed = gateway_pb2_grpc.GatewayStub(channel).ListModels(gateway_pb2.ListModelsRequest(), timeout=30)
    (model,) = listed.models
    assert (model.family, model.images, model.video) == ("phi4_multimodal", True, False)
    with urllib.request.urlopen(f"{served.address.http}/v1/models", timeout=60) as response:  # noqa: S310  # it is http
        assert json.load(response)["data"][0]["input_modalities"] == ["text", "image"]


def test_a_picture_is_answered(served: PicturesOnly) -> None:
    """With its size as it is used, without padding, and the tokens of its crops and of its overview."""
    question = triptych.user(triptych.Image(PICTURE), QUESTION)
    answer = served.client.answer([question], max_tokens=4, ignore_eos=True)
    assert len(answer.token_ids) == 4
    (layout,) = served.client.count([question]).media
    assert (layout.size_given, layout.size_used, layout.grid) == ((70, 50), (78, 56), (1, 4, 6))
    assert layout.tokens == answer.usage.media_tokens == 2 * 4 + 1 + 2 * 3
    status, body = served.post([{"type": "text", "text": QUESTION}])
    assert (status, body["choices"][0]["message"]["role"]) == (200, "assistant")


def test_a_video_is_refused_by_its_field(served: PicturesOnly) -> None:
    """Before it is looked at: it is none."""
    question = triptych.user(triptych.Image(PICTURE), triptych.Video(b"anything"), QUESTION)
    for call in (served.client.answer, served.client.count):
        with pytest.raises(triptych.TriptychError, match="takes text and images") as caught:
            call([question])  # type: ignore[operator]
        assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "MEDIA_NOT_SUPPORTED")
        assert [violation.field for violation in caught.value.violations] == ["messages[0].parts[1].video"]
    status, body = served.post([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}])
    assert (status, body["error"]["code"]) == (400, "media_not_supported")
    assert body["error"]["param"].startswith("messages[0].content[0]")


@pytest.mark.parametrize("kind", ["input_audio", "audio_url"])
def test_audio_is_refused_by_name(served: PicturesOnly, kind: str) -> None:
    """Though the checkpoint has an encoder for it."""
    status, body = served.post([{"type": "text", "text": QUESTION}, {"type": kind, kind: {"data": "AAAA"}}])
    assert status == 400
    assert body["error"]["param"] == "messages[0].content[1]"
    assert kind in body["error"]["message"]


def test_extreme_pictures_are_refused_by_their_field(served: PicturesOnly) -> None:
    """With the size that they would have."""
    question = triptych.user(triptych.Image(png(noise(900, 8))), QUESTION)
    with pytest.raises(triptych.TriptychError, match="no side may have less than 10") as caught:
        served.client.answer([question], max_tokens=2)
    assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "IMAGE_ASPECT_RATIO")
    assert caught.value.violations[0].field == "messages[0].parts[0].image"


def test_names_of_placeholders_are_text(served: PicturesOnly) -> None:
    """Whoever writes them gets no picture."""
    plain = served.client.answer([triptych.user(f"<|image_1|>{IMAGE}")], max_tokens=2, return_prompt_token_ids=True)
    assert plain.usage.media_tokens == 0
