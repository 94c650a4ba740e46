"""What the graphs are asked: pictures with a text, laid out as the bundle's services lay them out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoder_service import chat
from decoder_service.families import registry as decoder_families
from decoder_service.families.family import Prompt
from decoder_service.request.prompt import PromptBuilder
from exporter.encoder_types import QUESTIONS, encode
from exporter.pictures import KINDS
from serving.bundle import Bundle
from vision_service.budget import default_budget
from vision_service.clip import VideoLimits
from vision_service.families import registry as vision_families
from vision_service.family import PreprocessLimits
from vision_service.media import Options, PreparedMedium

_OF_A_KIND = 4
_FIRST = 1000  # the export looks at pictures with smaller numbers: what is tuned on those is not judged by them
_LIMITS = PreprocessLimits(1 << 27, VideoLimits(seconds=0, frames=0, sampled=0, pixels=0), 1 << 16)


@dataclass(frozen=True)
class Shown:
    """Pictures and a text.

    Attributes:
        pictures: image files.
        text: what is asked.
    """

    pictures: Sequence[bytes]
    text: str


@dataclass(frozen=True, eq=False)
class Laid:
    """The same as the models take it.

    Attributes:
        prompt: ids and positions.
        media: what is encoded, in order.
    """

    prompt: Prompt
    media: Sequence[PreparedMedium]


def built_in() -> list[Shown]:
    """Pictures of each kind that the package draws, each with every question; neighbours are of different kinds."""
    shown = []
    for index in range(_FIRST, _FIRST + _OF_A_KIND):
        for draw in KINDS.values():
            picture = png(draw(index))
            shown += [Shown([picture], question) for question in QUESTIONS]
    return shown


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


class Layouts:
    """Lays prompts out.

    Args:
        bundle: whose preprocessor, template and tokens.
        max_pixels: greatest area of a resized picture; None: what a vision service on a CPU takes by default.
    """

    def __init__(self, bundle: Bundle, max_pixels: int | None) -> None:
        self._preprocessor = vision_families.family_of(bundle).make_preprocessor(bundle, _LIMITS)
        self._builder = PromptBuilder.load(bundle.decoder_dir, decoder_families.family_of(bundle))
        budget = default_budget(
            self._preprocessor.published,
            on_cpu=True,
            max_pixels=max_pixels,
            max_video_pixels=None,
            max_frames=None,
        )
        self._options = Options(max_pixels=budget.max_pixels)

    def lay_out(self, shown: Shown) -> Laid:
        """One prompt.

        Raises:
            ServiceError: a picture is refused.
        """
        media = [self._preprocessor.prepare("image", picture, self._options) for picture in shown.pictures]
        named = [chat.Medium(chat.MediaKind.IMAGE, str(index)) for index in range(len(media))]
        rendered = self._builder.render([chat.Message(chat.Role.USER, (*named, chat.Text(shown.text)))])
        layouts = [
            chat.Layout(medium, one.grid, self._preprocessor.token_count(one.grid), ())
            for medium, one in zip(named, media, strict=True)
        ]
        return Laid(self._builder.expand(rendered, layouts), media)


def features_of(bundle: Bundle, laid: Sequence[Laid], dtype: str) -> Iterator[NDArray[np.float32]]:
    """The features of each prompt's pictures, [rows, width].

    Args:
        bundle: has the encoder.
        laid: the prompts.
        dtype: type that the encoder computes in.
    """
    rows = encode(bundle, (medium for one in laid for medium in one.media), dtype)
    for one in laid:
        parts = [next(rows) for _ in one.media]
        yield np.concatenate(parts) if parts else np.empty((0, bundle.feature_width), np.float32)
    for _ in rows:  # it ends, and lets the encoder go
        pass
