"""Options for media in OpenAI's JSON, and what the answer says of media."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.http.completions import Completion
from gateway.http.translate import JsonNames, parse, to_chat
from gateway.http.unserved import ignored_fields
from serving.errors import Code, ServiceError
from tests.gateway.openai_json import HELLO, ask, events, film, picture
from vlm.v1 import chat_pb2, gateway_pb2, media_pb2

Options = media_pb2.MediaOptions


def translated(body: dict[str, Any]) -> gateway_pb2.ChatRequest:
    """The request on the wire."""
    return to_chat(parse(json.dumps(body).encode()), "r-1")


def processor(**values: Any) -> dict[str, Any]:
    """`mm_processor_kwargs`."""
    return {"mm_processor_kwargs": values}


def video(**values: Any) -> dict[str, Any]:
    """`media_io_kwargs` for videos."""
    return {"media_io_kwargs": {"video": values}}


EACH = {
    "min_pixels": 1,
    "max_pixels": 2,
    "fps": 0.5,
    "min_frames": 3,
    "max_frames": 4,
    "min_video_pixels": 5,
    "max_video_pixels": 6,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (processor(**EACH), Options(**EACH)),  # type: ignore[arg-type]
        (
            processor(size={"shortest_edge": 7, "longest_edge": 8}),
            Options(min_pixels=7, max_pixels=8, min_video_pixels=7, max_video_pixels=8),
        ),
        (
            processor(size={"longest_edge": 8}, max_pixels=9),
            Options(max_pixels=9, max_video_pixels=8),
        ),
        (video(fps=3), Options(fps=3)),
        (video(num_frames=8), Options(min_frames=8, max_frames=8)),
        (video(num_frames=8, fps=-1), Options(min_frames=8, max_frames=8)),
        (video(num_frames=8, fps=2), Options(max_frames=8, fps=2)),
        (video(num_frames=-1, fps=2), Options(fps=2)),
        ({**video(num_frames=8, fps=2), **processor(fps=4)}, Options(max_frames=8, fps=4)),
        ({**video(num_frames=8), **processor(fps=4)}, Options(max_frames=8, fps=4)),
        ({**video(num_frames=8), **processor(max_frames=4)}, Options(max_frames=4)),
        ({**video(num_frames=8), **processor(min_frames=4)}, Options(min_frames=4, max_frames=8)),
    ],
)
def test_options_become_those_of_the_wire(fields: dict[str, Any], expected: media_pb2.MediaOptions) -> None:
    """The names of vLLM set MediaOptions; a field of its own wins over `size` and `media_io_kwargs`."""
    assert translated({**HELLO, **fields}).media == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"mm_processor_kwargs": None, "media_io_kwargs": None},
        {"mm_processor_kwargs": {}, "media_io_kwargs": {}},
        {"media_io_kwargs": {"video": {}, "image": {}, "audio": None}},
        {"media_io_kwargs": {"video": None, "image": None}},
        video(fps=-1, num_frames=-1, frame_recovery=False),
        video(fps=None, num_frames=None),
        processor(**dict.fromkeys(EACH), size=None, do_sample_frames=True, do_resize=True),
        processor(size={"shortest_edge": None}),
    ],
)
def test_what_asks_for_nothing_sets_nothing(fields: dict[str, Any]) -> None:
    """Empty objects, null and the values that stand for no bound leave the options unset."""
    assert not translated({**HELLO, **fields}).HasField("media")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"mm_processor_kwargs": 5}, "mm_processor_kwargs"),
        (processor(max_pixels="many"), "mm_processor_kwargs.max_pixels"),
        (processor(max_pixels=-1), "mm_processor_kwargs.max_pixels"),
        (processor(max_pixels=1 << 32), "mm_processor_kwargs.max_pixels"),
        (processor(max_pixels=True), "mm_processor_kwargs.max_pixels"),
        (processor(min_frames=1.5), "mm_processor_kwargs.min_frames"),
        (processor(fps=-1), "mm_processor_kwargs.fps"),
        (processor(fps=[2]), "mm_processor_kwargs.fps"),
        (processor(size=448), "mm_processor_kwargs.size"),
        (processor(size={"longest_edge": "x"}), "mm_processor_kwargs.size.longest_edge"),
        ({"media_io_kwargs": []}, "media_io_kwargs"),
        (video(num_frames=-2), "media_io_kwargs.video.num_frames"),
        (video(num_frames="8"), "media_io_kwargs.video.num_frames"),
        (video(fps=-0.5), "media_io_kwargs.video.fps"),
        (video(fps="2"), "media_io_kwargs.video.fps"),
    ],
)
def test_options_of_another_shape_are_refused_by_name(fields: dict[str, Any], path: str) -> None:
    """A wrong type and a negative number are INVALID_ARGUMENT with the path in the JSON."""
    with pytest.raises(ServiceError) as failure:
        translated({**HELLO, **fields})
    assert (failure.value.code, failure.value.violations[0].field) == (Code.INVALID_ARGUMENT, path)
    assert failure.value.message.startswith(path)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (processor(do_resize=False), "mm_processor_kwargs.do_resize"),
        (processor(do_sample_frames=False), "mm_processor_kwargs.do_sample_frames"),
        (processor(do_rescale=1), "mm_processor_kwargs.do_rescale"),
        (processor(size={"height": 448, "width": 448}), "mm_processor_kwargs.size.height"),
        ({"media_io_kwargs": {"image": {"image_mode": "L"}}}, "media_io_kwargs.image"),
        (video(max_duration=5), "media_io_kwargs.video.max_duration"),
    ],
)
def test_options_that_are_not_served_are_refused_by_name(fields: dict[str, Any], path: str) -> None:
    """What vLLM knows and Triptych does not is UNIMPLEMENTED, and never ignored."""
    with pytest.raises(ServiceError) as failure:
        ignored_fields(parse(json.dumps({**HELLO, **fields}).encode()))
    assert (failure.value.code, failure.value.violations[0].field) == (Code.UNIMPLEMENTED, path)


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({}, None),
        ({"detail": None}, None),
        ({"detail": "auto"}, None),
        ({"detail": "high"}, None),
        ({"detail": "low"}, Options(detail=media_pb2.DETAIL_LOW)),
        ({"detail": "original"}, Options(detail=media_pb2.DETAIL_ORIGINAL)),
    ],
)
def test_the_detail_of_a_medium(detail: dict[str, Any], expected: media_pb2.MediaOptions | None) -> None:
    """`detail` of a picture and of a video is an option of that medium alone; `auto` and `high` are the default."""
    image, film_ = translated(ask(picture(b"file one", **detail), film(b"file two", **detail))).messages[0].parts
    for medium in (image.image, film_.video):
        assert medium.HasField("options") == (expected is not None)
        assert medium.options == (expected or Options())


@pytest.mark.parametrize(
    ("fields", "path", "name"),
    [
        (processor(max_pixels=0), "media.max_pixels", "mm_processor_kwargs.max_pixels"),
        (processor(size={"longest_edge": 0}), "media.max_pixels", "mm_processor_kwargs.size.longest_edge"),
        (processor(size={"longest_edge": 0}), "media.max_video_pixels", "mm_processor_kwargs.size.longest_edge"),
        (video(num_frames=0), "media.min_frames", "media_io_kwargs.video.num_frames"),
        (video(num_frames=5000), "media.max_frames", "media_io_kwargs.video.num_frames"),
        (video(fps=100), "media.fps", "media_io_kwargs.video.fps"),
        ({**video(fps=1), **processor(fps=100)}, "media.fps", "mm_processor_kwargs.fps"),
        ({}, "media.max_pixels", "mm_processor_kwargs.max_pixels"),
        ({}, "media", "mm_processor_kwargs"),
        ({}, "messages[0].parts[1].image.options.max_pixels", "messages[0].content[1].image_url.detail"),
        ({}, "messages[0].parts[0].video.options", "messages[0].content[0].video_url.detail"),
    ],
)
def test_names_of_options_are_those_that_the_client_sent(fields: dict[str, Any], path: str, name: str) -> None:
    """Paths of options on the wire are turned back into the fields of the JSON that they come from."""
    names = JsonNames(parse(json.dumps(ask(film(b"file one"), picture(b"file two"), **fields)).encode()))
    assert names(path) == name


@pytest.mark.parametrize("stream", [None, False, True])
def test_progress_is_asked_for_where_it_can_be_told(stream: bool | None) -> None:
    """Only a stream has a place for progress."""
    assert translated({**HELLO, "stream": stream}).report_progress == bool(stream)


LAYOUTS = [
    media_pb2.MediaLayout(
        kind=media_pb2.MEDIA_KIND_IMAGE,
        token_count=768,
        size_given=media_pb2.Size(width=4000, height=3000),
        size_used=media_pb2.Size(width=1024, height=768),
    ),
    media_pb2.MediaLayout(
        kind=media_pb2.MEDIA_KIND_VIDEO,
        token_count=16,
        size_given=media_pb2.Size(width=64, height=64),
        size_used=media_pb2.Size(width=64, height=64),
        frame_times=[0.0, 1 / 3],
    ),
]
MEDIA = [
    {
        "kind": "image",
        "size_given": {"width": 4000, "height": 3000},
        "size_used": {"width": 1024, "height": 768},
        "tokens": 768,
    },
    {
        "kind": "video",
        "size_given": {"width": 64, "height": 64},
        "size_used": {"width": 64, "height": 64},
        "tokens": 16,
        "frames": 2,
        "frame_times": [0.0, 0.333],
    },
]
ANSWER = [
    chat_pb2.ChatEvent(started=chat_pb2.Started(model="m", media=LAYOUTS)),
    chat_pb2.ChatEvent(delta=chat_pb2.Delta(text="A circle.")),
    chat_pb2.ChatEvent(finished=chat_pb2.Finished(reason=chat_pb2.FINISH_REASON_STOP)),
]


async def test_the_whole_answer_says_what_the_media_became() -> None:
    """`media` of an answer has sizes, tokens and frame times, in order of appearance."""

    async def happen() -> Any:
        for event in ANSWER:
            yield event

    assert (await Completion("r-1").whole(happen()))["media"] == MEDIA


def test_the_first_chunk_says_what_the_media_became() -> None:
    """`media` is in the first chunk of a stream, and in no other."""
    completion = Completion("r-1", include_usage=True)
    lines = b"".join(line for event in ANSWER for line in completion.chunks(event))
    first, *others, _ = events(lines.decode())
    assert first["media"] == MEDIA
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("media" in chunk for chunk in others)


async def test_an_answer_without_media_has_no_such_field() -> None:
    """An answer to text alone is OpenAI's JSON and nothing else."""

    async def happen() -> Any:
        yield chat_pb2.ChatEvent(started=chat_pb2.Started(model="m"))
        yield chat_pb2.ChatEvent(finished=chat_pb2.Finished())

    assert "media" not in await Completion("r-1").whole(happen())
