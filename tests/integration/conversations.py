"""Conversations of every kind, as the reference takes them and as the client says them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.pictures import noise, png, video
from tests.reference import Clip, Turn
from triptych import Image, Message, Video


def _clip(frames: int, width: int, height: int, fps: int) -> tuple[bytes, Clip]:
    images = tuple(noise(width, height, seed) for seed in range(frames))
    return video(images, fps), Clip(images, float(fps))


EVEN, ODD = _clip(16, 96, 64, 4), _clip(9, 64, 100, 3)

CONVERSATIONS: dict[str, list[Turn]] = {
    "text alone": [("user", ["What is the colour of the sky?"])],
    "system and text": [("system", ["You are brief."]), ("user", ["Hello, ", "in two parts."])],
    "one image": [("user", [png(noise(160, 128)), "Describe."])],
    "two images of different sizes": [("user", [png(noise(160, 128)), "and", png(noise(96, 224, 1)), "Compare."])],
    "a tall image": [("user", [png(noise(40, 400, 2)), "Describe."])],
    "a wide image": [("user", [png(noise(500, 60, 3)), "Describe."])],
    "an image after the text": [("user", ["Look: ", png(noise(120, 120, 4))])],
    "a video": [("user", [EVEN[1], "What happens?"])],
    "a video with an odd number of frames": [("user", [ODD[1], "What happens?"])],
    "a video and an image": [("user", [ODD[1], png(noise(128, 96, 5)), "Is it in the video?"])],
    "a second turn with a new image": [
        ("user", [png(noise(160, 128)), "Describe."]),
        ("assistant", ["A picture."]),
        ("user", [png(noise(100, 180, 6)), "And this?"]),
    ],
}


def to_messages(turns: Sequence[Turn]) -> list[Message]:
    """The conversation as the client says it."""
    files = {id(EVEN[1]): EVEN[0], id(ODD[1]): ODD[0]}

    def part(value: str | bytes | Clip) -> str | Image | Video:
        match value:
            case Clip():
                return Video(files[id(value)])
            case bytes():
                return Image(value)
            case str():
                return value

    return [Message(role, tuple(part(value) for value in parts)) for role, parts in turns]
