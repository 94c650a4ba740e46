"""What should find the same replica again, because that replica has it in its caches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from gateway.ports import Route
from vlm.v1 import chat_pb2, decoder_pb2, media_pb2

_PATCH_PIXELS = {media_pb2.MEDIA_KIND_IMAGE: 16 * 16, media_pb2.MEDIA_KIND_VIDEO: 2 * 16 * 16}
"""Pixels of a patch, for the estimate before the encoder has stated the number of patches."""

_RAW_PROMPT_UNITS = 256
"""Characters or tokens at the beginning of a raw prompt that make its key."""

_SECOND_TURN_SLACK = 2.0
"""Requests over the bound that a later turn accepts: its whole conversation is in the caches of one replica, and
computing it again takes longer than sharing that replica with so few others."""


def medium_route(
    kind: media_pb2.MediaKind.ValueType, digest: str, options: media_pb2.MediaOptions, *, cache_scope: str = ""
) -> Route:
    """The route of a medium to encode. Its load is in patches: at first the most that its budget allows.

    Args:
        kind: Image or video.
        digest: Digest of the file.
        options: Its resolved options.
        cache_scope: Whose caches may serve it.
    """
    pixels = options.max_pixels if kind == media_pb2.MEDIA_KIND_IMAGE else options.max_video_pixels
    return Route(
        _digest([cache_scope.encode(), str(kind).encode(), digest.encode(), _bytes(options)]),
        load=max(1.0, pixels / _PATCH_PIXELS.get(kind, 1)),
        joins=True,
    )


def generation_route(opening: decoder_pb2.GenerateOpen) -> Route:
    """The route of a generation. Its load is its number of answers.

    All turns of a conversation have one key, since they share its beginning: the system prompt, the tools, and
    everything up to the end of the first turn of the user, with the media there.

    Args:
        opening: The request, with digests in place of files.
    """
    later = any(message.role == chat_pb2.ROLE_ASSISTANT for message in opening.messages)
    return Route(
        _digest([opening.cache_scope.encode(), *_beginning(opening)]),
        load=float(max(opening.generation.n, 1)),
        slack=_SECOND_TURN_SLACK if later else 0.0,
    )


def _beginning(opening: decoder_pb2.GenerateOpen) -> Iterable[bytes]:
    which = opening.prompt.WhichOneof("prompt")
    if which == "text":
        yield opening.prompt.text[:_RAW_PROMPT_UNITS].encode()
    elif which == "token_ids":
        yield str(list(opening.prompt.token_ids.values[:_RAW_PROMPT_UNITS])).encode()
    for tool in opening.tools:
        yield _bytes(tool)
    for message in opening.messages:
        yield _bytes(message)
        if message.role == chat_pb2.ROLE_USER:
            break


def _bytes(message: chat_pb2.Message | chat_pb2.Tool | media_pb2.MediaOptions) -> bytes:
    return message.SerializeToString(deterministic=True)


def _digest(pieces: Iterable[bytes]) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.digest()
