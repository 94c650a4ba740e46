"""Takes the media out of a request's messages, checks them and computes their digests."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from gateway.copying import copy_fields
from serving.errors import Reason, invalid, too_large, unimplemented
from serving.media import check_options, media_digest, not_taken
from vlm.v1 import chat_pb2, media_pb2

_KINDS = {"image": media_pb2.MEDIA_KIND_IMAGE, "video": media_pb2.MEDIA_KIND_VIDEO}

_DIGEST_INLINE_BYTES = 256 * 1024
"""Up to this length a digest takes well under a millisecond, less than a switch to a thread."""


@dataclass(frozen=True)
class RequestLimits:
    """Limits of one request. Errors name the settings.

    Attributes:
        messages: Most messages.
        parts: Most parts of all messages together.
        media: Most images and videos.
        image_bytes: Largest image file.
        video_bytes: Largest video file.
    """

    messages: int = 1024
    parts: int = 4096
    media: int = 64
    image_bytes: int = 32 << 20
    video_bytes: int = 64 << 20


@dataclass(frozen=True)
class RequestMedium:
    """One image or video of a request.

    Attributes:
        path: Its path in the request, as in `messages[0].parts[1].image`.
        kind: Image or video.
        digest: Its digest.
        data: The file's bytes.
        options: Its own options from the client.
    """

    path: str
    kind: media_pb2.MediaKind.ValueType
    digest: str
    data: bytes = field(repr=False)
    options: media_pb2.MediaOptions = field(default_factory=media_pb2.MediaOptions)


@dataclass(frozen=True)
class Conversation:
    """A request's messages without the files of their media, and these media.

    Attributes:
        messages: The client's messages, with each medium's file replaced by its digest.
        media: The media in order of appearance; a medium's number is its index here.
    """

    messages: Sequence[chat_pb2.Message]
    media: Sequence[RequestMedium]


async def collect(
    messages: Sequence[chat_pb2.Message], limits: RequestLimits, *, takes: Collection[str] = tuple(_KINDS)
) -> Conversation:
    """Take the media out of copies of the messages.

    The client's messages are not changed. The decoder checks everything except media.

    Args:
        messages: The client's messages.
        limits: Limits of one request.
        takes: The kinds of media that there may be: "image" and "video".

    Raises:
        ServiceError: INVALID_ARGUMENT, UNIMPLEMENTED or RESOURCE_EXHAUSTED that names the medium at fault.
    """
    _check_counts(messages, limits)
    light: list[chat_pb2.Message] = []
    media: list[RequestMedium] = []
    held: dict[str, bytes] = {}  # one copy of equal files
    for i, message in enumerate(messages):
        named = chat_pb2.Message()
        copy_fields(message, named, without=("parts",))
        for j, part in enumerate(message.parts):
            which = part.WhichOneof("part")
            if which not in _KINDS:
                named.parts.add().CopyFrom(part)
                continue
            path = f"messages[{i}].parts[{j}].{which}"
            if which not in takes:
                raise invalid(path, not_taken(takes), reason=Reason.MEDIA_NOT_SUPPORTED)
            sent = part.image if which == "image" else part.video
            check_options(sent.options, f"{path}.options")
            data = _data(sent, path, which, limits)
            digest = await _digest(data)
            _add_named(named, part, which, digest)
            options = media_pb2.MediaOptions()
            options.CopyFrom(sent.options)
            media.append(RequestMedium(path, _KINDS[which], digest, held.setdefault(digest, data), options))
        light.append(named)
    return Conversation(light, media)


def _add_named(message: chat_pb2.Message, part: chat_pb2.Part, which: str, digest: str) -> None:
    """Add a copy of the part to the message, its medium named by its digest instead of holding the file."""
    added = message.parts.add()
    copy_fields(part, added, without=(which,))
    sent, named = (part.image, added.image) if which == "image" else (part.video, added.video)
    copy_fields(sent, named, without=("data", "url", "digest"))
    named.digest = digest


def _check_counts(messages: Sequence[chat_pb2.Message], limits: RequestLimits) -> None:
    """Check the counts before any file is copied."""
    parts = media = 0
    for message in messages:
        parts += len(message.parts)
        media += sum(part.WhichOneof("part") in _KINDS for part in message.parts)
    for count, what, reason, limit, setting in (
        (len(messages), "messages", Reason.TOO_MANY_MESSAGES, limits.messages, "max_messages"),
        (parts, "parts", Reason.TOO_MANY_PARTS, limits.parts, "max_parts"),
        (media, "images and videos", Reason.TOO_MANY_MEDIA, limits.media, "max_media_per_request"),
    ):
        if count > limit:
            description = f"has {count} {what}, more than the limit of {limit} ({setting})"
            raise too_large("messages", description, reason=reason, limit=limit)


def _data(source: media_pb2.Media, path: str, which: str, limits: RequestLimits) -> bytes:
    """The file's bytes, copied out of the request: the only copy that the gateway keeps."""
    named = source.WhichOneof("source")
    if named is None:
        raise invalid(path, "has no source; put the bytes of the file into `data`")
    if named in ("url", "digest"):
        raise unimplemented(f"{path}.{named}", "put the bytes of the file into `data`")
    data = source.data
    limit, setting, reason = (
        (limits.image_bytes, "max_image_bytes", Reason.IMAGE_TOO_LARGE)
        if which == "image"
        else (limits.video_bytes, "max_video_bytes", Reason.VIDEO_TOO_LARGE)
    )
    if not data:
        raise invalid(path, "is empty; put the bytes of the file into `data`")
    if len(data) > limit:
        raise too_large(
            path,
            f"has {len(data)} bytes, more than the limit of {limit} ({setting})",
            reason=reason,
            limit=limit,
        )
    return data


def name_options(messages: Iterable[chat_pb2.Message], options: Iterable[media_pb2.MediaOptions]) -> None:
    """Set the resolved options of each medium of the messages, in order of appearance."""
    following = iter(options)
    for message in messages:
        for part in message.parts:
            which = part.WhichOneof("part")
            if which in _KINDS:
                medium = part.image if which == "image" else part.video
                medium.options.CopyFrom(next(following))


async def _digest(data: bytes) -> str:
    if len(data) <= _DIGEST_INLINE_BYTES:
        return media_digest(data)
    return await asyncio.to_thread(media_digest, data)  # hashlib releases the GIL
