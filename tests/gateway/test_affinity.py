"""What makes two requests prefer the same replica."""

from __future__ import annotations

from gateway.affinity import generation_route, medium_route
from tests.gateway.requests import text, user
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2

IMAGE, VIDEO = media_pb2.MEDIA_KIND_IMAGE, media_pb2.MEDIA_KIND_VIDEO


def _picture(digest: str) -> chat_pb2.Part:
    return chat_pb2.Part(image=media_pb2.Media(digest=digest))


def _said(words: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=[text(words)])


def _open(*messages: chat_pb2.Message, **fields: object) -> decoder_pb2.GenerateOpen:
    return decoder_pb2.GenerateOpen(messages=messages, **fields)  # type: ignore[arg-type]


SYSTEM = chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[text("Be short.")])
FIRST = user(_picture("sha256:a"), text("What is this?"))


def test_all_turns_of_a_conversation_have_one_key() -> None:
    """Later turns, other sampling and another number of answers do not change it."""
    route = generation_route(_open(SYSTEM, FIRST))
    later = generation_route(
        _open(SYSTEM, FIRST, _said("A circle."), user(text("And now?")), generation={"temperature": 1.0, "n": 3})
    )
    assert later.key == route.key
    assert (route.load, later.load) == (1, 3)


def test_another_beginning_is_another_key() -> None:
    """The system prompt, the picture, the words and the tools are all in the prefix."""
    keys = [
        generation_route(opening).key
        for opening in (
            _open(SYSTEM, FIRST),
            _open(FIRST),
            _open(SYSTEM, user(_picture("sha256:b"), text("What is this?"))),
            _open(SYSTEM, user(_picture("sha256:a"), text("What is that?"))),
            _open(SYSTEM, FIRST, tools=[{"name": "f"}]),
            _open(prompt={"text": "Once upon a time"}),
            _open(prompt={"text": "Twice"}),
            _open(prompt={"token_ids": {"values": [1, 2, 3]}}),
            _open(prompt={"token_ids": {"values": [1, 2]}}),
        )
    ]
    assert len(set(keys)) == len(keys)


def test_a_raw_prompt_that_grows_keeps_its_key() -> None:
    """Its beginning is what the caches have."""
    start = "Once upon a time there was a picture. " * 10
    assert (
        generation_route(_open(prompt={"text": start})).key
        == generation_route(_open(prompt={"text": start + "It"})).key
    )


def test_only_later_turns_accept_a_busier_replica() -> None:
    """A first turn has nothing in any cache."""
    assert generation_route(_open(SYSTEM, FIRST)).slack == 0
    assert generation_route(_open(SYSTEM, FIRST, _said("A circle."), user(text("And now?")))).slack > 0


def test_a_mediums_key_is_that_of_its_features() -> None:
    """The file, the kind, the options, and whose caches may serve it."""
    small, large = media_pb2.MediaOptions(max_pixels=512), media_pb2.MediaOptions(max_pixels=1024)
    routes = [
        medium_route(IMAGE, "sha256:a", small),
        medium_route(IMAGE, "sha256:b", small),
        medium_route(VIDEO, "sha256:a", small),
        medium_route(IMAGE, "sha256:a", large),
        medium_route(IMAGE, "sha256:a", small, cache_scope="one"),
        medium_route(IMAGE, "sha256:a", small, cache_scope="other"),
    ]
    assert len({route.key for route in routes}) == len(routes)
    assert medium_route(IMAGE, "sha256:a", small).key == routes[0].key


def test_a_mediums_load_is_what_its_budget_allows() -> None:
    """In patches, until the encoder has stated them."""
    assert medium_route(IMAGE, "a", media_pb2.MediaOptions(max_pixels=1024 * 1024)).load == 4096
    assert medium_route(VIDEO, "a", media_pb2.MediaOptions(max_video_pixels=1 << 21)).load == 4096
    assert medium_route(IMAGE, "a", media_pb2.MediaOptions()).load == 1
