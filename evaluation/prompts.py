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
from evaluation.errors import EvaluationError
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
_TEXTS = (
    "Name three rivers of Europe and the seas that they reach.",
    "What is seventeen times twenty-three? Show each step.",
    "Write a limerick about a cat that is afraid of rain.",
    "Translate into French: The train was late, so we walked along the harbour.",
    "Explain to a child why ice floats on water.",
    "Sort these words by length: fig, plum, cherry, apricot, pear.",
    "Write a SQL query that counts the orders of each customer in 2023.",
    "Is the following sentence correct English? Him and me goes to school.",
    "Summarize in one sentence: The meeting was moved to Friday because the room was taken, and nobody minded.",
    "Welche Farbe ergibt sich, wenn man Blau und Gelb mischt?",
    "List the prime numbers between 40 and 60 as a JSON array.",
    "A shop sells pens at 3 for 2 euros. How many pens do 10 euros buy?",
    "What does this print? for i in range(3): print(i * i, end=' ')",
    "Give two reasons for and two against working at night.",
    "Who wrote the novel Middlemarch, and what is it about?",
    "Complete the series and say the rule: 2, 6, 12, 20, 30, ...",
)
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


def built_in_texts() -> list[Shown]:
    """Texts alone, for a model without an encoder; none of them is among those that an export is calibrated on."""
    return [Shown([], text) for text in _TEXTS]


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
        self._builder = PromptBuilder.load(bundle.decoder_dir, decoder_families.family_of(bundle))
        self._pictures = _Pictures(bundle, max_pixels) if bundle.has_encoder else None

    def lay_out(self, shown: Shown) -> Laid:
        """One prompt.

        Raises:
            EvaluationError: there are pictures, and the model takes text only.
            ServiceError: a picture is refused.
        """
        if shown.pictures and self._pictures is None:
            raise EvaluationError("the model takes text only, and there are questions about pictures")
        media, layouts = ([], []) if self._pictures is None else self._pictures.lay_out(shown.pictures)
        named = [layout.medium for layout in layouts]
        rendered = self._builder.render([chat.Message(chat.Role.USER, (*named, chat.Text(shown.text)))])
        return Laid(self._builder.expand(rendered, layouts), media)


class _Pictures:
    """Prepares pictures; arguments as of `Layouts`."""

    def __init__(self, bundle: Bundle, max_pixels: int | None) -> None:
        self._preprocessor = vision_families.family_of(bundle).make_preprocessor(bundle, _LIMITS)
        budget = default_budget(
            self._preprocessor.published,
            on_cpu=True,
            max_pixels=max_pixels,
            max_video_pixels=None,
            max_frames=None,
        )
        self._options = Options(max_pixels=budget.max_pixels)

    def lay_out(self, pictures: Sequence[bytes]) -> tuple[list[PreparedMedium], list[chat.Layout]]:
        """The pictures as the encoder takes them, and their layouts."""
        media = [self._preprocessor.prepare("image", picture, self._options) for picture in pictures]
        layouts = [
            chat.Layout(
                chat.Medium(chat.MediaKind.IMAGE, str(index)), one.grid, self._preprocessor.token_count(one.grid), ()
            )
            for index, one in enumerate(media)
        ]
        return media, layouts


def features_of(bundle: Bundle, laid: Sequence[Laid], dtype: str) -> Iterator[NDArray[np.float32]]:
    """The features of each prompt's pictures, [rows, width].

    Args:
        bundle: has the encoder.
        laid: the prompts.
        dtype: type that the encoder computes in.
    """
    if not bundle.has_encoder:
        yield from (np.empty((0, bundle.feature_width), np.float32) for _ in laid)
        return
    rows = encode(bundle, (medium for one in laid for medium in one.media), dtype)
    for one in laid:
        parts = [next(rows) for _ in one.media]
        yield np.concatenate(parts) if parts else np.empty((0, bundle.feature_width), np.float32)
    for _ in rows:  # it ends, and lets the encoder go
        pass
