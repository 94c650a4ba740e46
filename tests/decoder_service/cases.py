"""Conversations as the decoder sees them, with the features and the answers of transformers on the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind, Medium, Message, Role, Text
from decoder_service.engine import EngineRequest, FeatureRows, SamplingParams
from decoder_service.request.prompt import PromptBuilder
from serving.media import media_digest
from tests.pictures import noise, png
from tests.reference import Clip, Inputs, Reference, Turn
from tests.threads import one_thread

TOKENS = 24
"""Length of the answers that are compared."""

EVEN = Clip(tuple(noise(96, 64, seed) for seed in range(16)), 4.0)
ODD = Clip(tuple(noise(64, 100, seed) for seed in range(9)), 3.0)

TURNS: dict[str, list[Turn]] = {
    "text alone": [("user", ["What is the colour of the sky? 你好 🌍 12345"])],
    "system, and text in two parts": [("system", ["You are brief."]), ("user", ["Hello, ", "in two parts."])],
    "one image": [("user", [png(noise(160, 128)), "Describe."])],
    "two images": [("user", [png(noise(160, 128)), "and", png(noise(96, 224, 1)), "Compare."])],
    "text before the image": [("user", ["Look: ", png(noise(120, 120, 4))])],
    "two turns": [
        ("user", [png(noise(160, 128)), "Describe."]),
        ("assistant", ["A picture."]),
        ("user", [png(noise(100, 180, 6)), "And this?"]),
    ],
    "video": [("user", [EVEN, "What happens?"])],
    "odd video and an image": [("user", [ODD, png(noise(128, 96, 5)), "Is it in the video?"])],
}


@dataclass(frozen=True)
class Case:
    """One conversation.

    Attributes:
        inputs: As transformers takes it.
        messages: As the decoder's core takes it.
        layouts: One for each medium, in order.
        features: One array for each medium, in order.
        reference: transformers.
    """

    inputs: Inputs
    messages: tuple[Message, ...]
    layouts: tuple[Layout, ...]
    features: tuple[NDArray[np.float32], ...]
    reference: Reference

    @cached_property
    def greedy(self) -> list[int]:
        """Transformers' greedy tokens, past the end of the turn."""
        with one_thread():
            return self.reference.generate(self.inputs, TOKENS, stop=False)

    def request(self, prompts: PromptBuilder, *, tokens: int, sampling: SamplingParams | None = None) -> EngineRequest:
        """The conversation as the engine takes it, without stop tokens."""
        prompt = prompts.expand(prompts.render(self.messages), self.layouts)
        return EngineRequest(
            request_id="test",
            token_ids=prompt.engine_token_ids,
            features=FeatureRows.of(*self.features),
            positions=prompt.positions,
            media=prompt.media,
            inputs=prompt.inputs,
            sampling=sampling or SamplingParams(),
            max_new_tokens=tokens,
            stop_token_ids=frozenset(),
        )


def named(request: EngineRequest, *keys: str) -> EngineRequest:
    """With a key for each of its media; none at all where none is given."""
    of_media = zip(request.media, keys or [""] * len(request.media), strict=True)
    return dataclasses.replace(request, media=tuple(dataclasses.replace(span, key=key) for span, key in of_media))


def followed(request: EngineRequest, token_ids: Sequence[int]) -> EngineRequest:
    """With more text after its prompt."""
    after = request.positions[:, -1:] + np.arange(1, len(token_ids) + 1)
    return dataclasses.replace(
        request,
        token_ids=np.concatenate([request.token_ids, np.array(token_ids, np.int32)]),
        positions=np.concatenate([request.positions, after], 1),
    )


def preceded(request: EngineRequest, token_ids: Sequence[int]) -> EngineRequest:
    """With more text before its prompt."""
    count = len(token_ids)
    before = np.tile(np.arange(count), (len(request.positions), 1))
    media = [dataclasses.replace(span, start=span.start + count, stop=span.stop + count) for span in request.media]
    return dataclasses.replace(
        request,
        token_ids=np.concatenate([np.array(token_ids, np.int32), request.token_ids]),
        positions=np.concatenate([before, request.positions + count], 1),
        media=tuple(media),
    )


def make_case(reference: Reference, turns: Sequence[Turn]) -> Case:
    """Lay a conversation out for both sides, with the features that transformers computes."""
    inputs = reference.inputs(turns)
    stills = _split(inputs, reference, "pixel_values", "image_grid_thw")
    clips = _split(inputs, reference, "pixel_values_videos", "video_grid_thw")
    messages, layouts, features = [], [], []
    for role, parts in turns:
        said: list[Text | Medium] = []
        for part in parts:
            if isinstance(part, str):
                said.append(Text(part))
                continue
            times: tuple[float, ...] = ()
            if isinstance(part, Clip):
                kind, name = MediaKind.VIDEO, b"".join(frame.tobytes() for frame in part.frames)
                grid, rows = clips.pop(0)
                times = tuple(reference._clip(part)[2])
            else:
                kind, name = MediaKind.IMAGE, part
                grid, rows = stills.pop(0)
            medium = Medium(kind, media_digest(name))
            said.append(medium)
            layouts.append(Layout(medium, grid, len(rows), times))
            features.append(rows)
        messages.append(Message(Role(role), tuple(said)))
    return Case(inputs, tuple(messages), tuple(layouts), tuple(features), reference)


def _split(
    inputs: Inputs, reference: Reference, pixels: str, grids: str
) -> list[tuple[tuple[int, int, int], NDArray[np.float32]]]:
    if pixels not in inputs.media:
        return []
    found = []
    offset = 0
    for grid in inputs.media[grids]:
        size = int(grid.prod())
        rows = reference.features(inputs.media[pixels][offset : offset + size], grid[None])
        offset += size
        t, h, w = (int(n) for n in grid)
        found.append(((t, h, w), np.ascontiguousarray(rows.numpy(), np.float32)))
    return found
