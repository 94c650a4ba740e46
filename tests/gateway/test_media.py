"""The media of a request: found, checked, named, taken out."""

from __future__ import annotations

import pytest

from gateway.media import RequestLimits, collect
from serving.errors import Code, ServiceError
from serving.media import media_digest
from tests.gateway.requests import image, text, user, video
from vlm.v1 import chat_pb2, media_pb2

LIMITS = RequestLimits(messages=3, parts=6, media=4, image_bytes=100, video_bytes=200)


async def refused(*messages: chat_pb2.Message) -> ServiceError:
    """Why these messages are refused."""
    with pytest.raises(ServiceError) as caught:
        await collect(messages, LIMITS)
    return caught.value


async def test_media_are_numbered_in_order_of_appearance() -> None:
    """Media of all messages come in one row, each with its path, kind and digest."""
    messages = [user(image(b"one"), text("and"), video(b"two")), user(text("again"), image(b"one"))]
    conversation = await collect(messages, LIMITS)
    assert [(medium.path, medium.kind, medium.digest, medium.data) for medium in conversation.media] == [
        ("messages[0].parts[0].image", media_pb2.MEDIA_KIND_IMAGE, media_digest(b"one"), b"one"),
        ("messages[0].parts[2].video", media_pb2.MEDIA_KIND_VIDEO, media_digest(b"two"), b"two"),
        ("messages[1].parts[1].image", media_pb2.MEDIA_KIND_IMAGE, media_digest(b"one"), b"one"),
    ]
    assert conversation.media[0].data is conversation.media[2].data  # held once


async def test_messages_keep_all_but_the_bytes() -> None:
    """The messages that go on hold digests; the client's own messages keep their bytes."""
    messages = [
        user(text("Look: "), image(b"one")),
        chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=[text("I see.")]),
        chat_pb2.Message(
            role=77, parts=[chat_pb2.Part(), chat_pb2.Part(tool_call={"name": "f"})]
        ),  # the decoder's to judge
    ]
    conversation = await collect(messages, LIMITS)
    assert conversation.messages[0].parts[1].image == media_pb2.Media(digest=media_digest(b"one"))
    assert list(conversation.messages[1:]) == messages[1:]
    assert messages[0].parts[1].image.data == b"one"


async def test_large_files_have_the_same_digest() -> None:
    """A file that is digested on a thread gets the digest of its bytes."""
    data = bytes(range(256)) * 4096
    conversation = await collect([user(image(data))], RequestLimits())
    assert conversation.media[0].digest == media_digest(data)


async def test_a_medium_without_a_source_is_refused() -> None:
    """A medium that names nothing is INVALID_ARGUMENT with its path."""
    error = await refused(user(text("x"), chat_pb2.Part(image=media_pb2.Media())))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "messages[0].parts[1].image")
    assert "no source" in error.message


async def test_an_empty_file_is_refused() -> None:
    """A file of no bytes is INVALID_ARGUMENT with its path."""
    error = await refused(user(video(b"")))
    assert (error.code, error.violations[0].field) == (Code.INVALID_ARGUMENT, "messages[0].parts[0].video")
    assert "is empty" in error.message


@pytest.mark.parametrize("source", ["url", "digest"])
async def test_sources_that_are_not_served_are_refused(source: str) -> None:
    """A URL or a digest is UNIMPLEMENTED, with what to do instead."""
    media = media_pb2.Media(**{source: "https://example.org/cat.png"})
    error = await refused(user(text("x")), user(chat_pb2.Part(image=media)))
    assert (error.code, error.violations[0].field) == (Code.UNIMPLEMENTED, f"messages[1].parts[0].image.{source}")
    assert "put the bytes of the file into `data`" in error.message


@pytest.mark.parametrize(
    ("part", "limit", "reason"), [(image, 100, "IMAGE_TOO_LARGE"), (video, 200, "VIDEO_TOO_LARGE")]
)
async def test_a_file_over_its_limit_is_refused(part: type, limit: int, reason: str) -> None:
    """A file may be as large as its limit and no larger; the error names the size, the limit and the setting."""
    await collect([user(part(bytes(limit)))], LIMITS)
    error = await refused(user(part(bytes(limit + 1))))
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, reason)
    assert error.metadata == {"limit": str(limit)}
    assert f"has {limit + 1} bytes, more than the limit of {limit} (max_{part.__name__}_bytes)" in error.message


@pytest.mark.parametrize(
    ("messages", "reason", "setting"),
    [
        ([user(text("x"))] * 4, "TOO_MANY_MESSAGES", "max_messages"),
        ([user(*[text("x")] * 4)] * 2, "TOO_MANY_PARTS", "max_parts"),
        ([user(*[image(b"x")] * 5)], "TOO_MANY_MEDIA", "max_media_per_request"),
    ],
)
async def test_too_many_of_anything_is_refused(messages: list[chat_pb2.Message], reason: str, setting: str) -> None:
    """Counts over their limits are refused with the setting's name, before any file is looked at."""
    error = await refused(*messages)
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, reason)
    assert setting in error.message
