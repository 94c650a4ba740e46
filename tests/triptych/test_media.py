"""Images, videos and their options, to the wire."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import triptych
from triptych.media import media_to_wire
from triptych.options import CountOptions, chat_request, count_request
from vlm.v1 import media_pb2

OPTIONS: dict[str, Any] = {
    "min_pixels": 4,
    "max_pixels": 5,
    "fps": 0.5,
    "min_frames": 6,
    "max_frames": 7,
    "min_video_pixels": 8,
    "max_video_pixels": 9,
}

OF_ALL_CALLS = {"model", "request_id", "timeout", "enable_thinking", "tools"}


def test_every_option_of_the_wire_has_its_name() -> None:
    """The options of a chat and of a count are the fields of MediaOptions, each in its place."""
    assert {*OPTIONS, "detail"} == {field.name for field in media_pb2.MediaOptions.DESCRIPTOR.fields}
    assert set(CountOptions.__annotations__) == {*OPTIONS, "detail", *OF_ALL_CALLS}
    expected = media_pb2.MediaOptions(**OPTIONS, detail=media_pb2.DETAIL_LOW)
    given: Any = {**OPTIONS, "detail": "low", "model": "m", "request_id": "r"}
    messages = [triptych.user("hi")]
    assert chat_request(messages, given).media == expected
    counted = count_request(messages, given)
    assert (counted.media, counted.model, counted.request_id) == (expected, "m", "r")
    assert count_request(messages, {}).media == media_pb2.MediaOptions()


@pytest.mark.parametrize(
    ("detail", "wire"),
    [("low", media_pb2.DETAIL_LOW), ("high", media_pb2.DETAIL_HIGH), ("original", media_pb2.DETAIL_ORIGINAL)],
)
def test_a_medium_has_options_of_its_own(tmp_path: Path, detail: Any, wire: media_pb2.Detail.ValueType) -> None:
    """What an image or a video is opened with goes to that part alone."""
    (tmp_path / "file").write_bytes(b"data")
    image = triptych.Image.open(tmp_path / "file", min_pixels=4, max_pixels=5, detail=detail)
    assert media_to_wire(image) == media_pb2.Media(
        data=b"data", options=media_pb2.MediaOptions(min_pixels=4, max_pixels=5, detail=wire)
    )
    own = {name: value for name, value in OPTIONS.items() if name not in ("min_pixels", "max_pixels")}
    video = triptych.Video.open(tmp_path / "file", **own, detail=detail)
    assert media_to_wire(video) == media_pb2.Media(data=b"data", options=media_pb2.MediaOptions(**own, detail=wire))
    request = chat_request([triptych.user(image, video, "what?")], {})
    assert [part.image.options.max_pixels for part in request.messages[0].parts] == [5, 0, 0]
    assert request.media == media_pb2.MediaOptions()


@pytest.mark.parametrize("kind", [triptych.Image, triptych.Video])
def test_a_medium_without_options_sends_none(kind: Any) -> None:
    """The bytes alone: the field `options` stays unset."""
    wire = media_to_wire(kind(b"data"))
    assert wire.data == b"data"
    assert not wire.HasField("options")


def test_a_repr_has_the_name_and_the_size_and_no_bytes(tmp_path: Path) -> None:
    """Of a medium, of a message and of an answer; equal content is equal under another name."""
    (tmp_path / "photo.jpg").write_bytes(b"x" * 3_200_000)
    image = triptych.Image.open(tmp_path / "photo.jpg", detail="low")
    assert repr(image) == f"Image('{tmp_path}/photo.jpg', 3.2 MB, detail='low')"
    assert repr(triptych.Video(b"x" * 5200, fps=1.5)) == "Video(5.2 kB, fps=1.5)"
    assert image == triptych.Image(image.data, detail="low", name="another")
    assert replace(image, detail=None).name == image.name
    message = repr(triptych.user(image, "what? " * 100_000))
    assert message.startswith("user(Image('")
    assert len(message) < 500


def test_a_wrong_detail_is_refused_with_the_choices() -> None:
    """Wherever a detail is given, one that the wire has no word for never leaves the client."""
    wrong: Any = "unspecified"
    choices = "detail is 'unspecified' and must be one of low, high, original"
    with pytest.raises(ValueError, match=choices):
        triptych.Image(b"data", detail=wrong)
    with pytest.raises(ValueError, match=choices):
        triptych.Video(b"data", detail=wrong)
    for make in (chat_request, count_request):
        build: Any = make
        with pytest.raises(ValueError, match=choices):
            build([triptych.user("hi")], {"detail": wrong})


def test_an_option_of_none_is_as_if_it_were_left_out() -> None:
    """A caller may pass on what it was not told."""
    nothing: Any = dict.fromkeys([*OPTIONS, "detail"])
    assert chat_request([triptych.user("hi")], nothing) == chat_request([triptych.user("hi")], {})
