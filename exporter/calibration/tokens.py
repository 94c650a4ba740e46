"""From examples to what a decoder reads: token ids, positions, and the features of pictures."""

from __future__ import annotations

import gc

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from decoder_service import chat
from decoder_service.families import registry as decoder_families
from decoder_service.families.family import Prompt
from decoder_service.request.prompt import PromptBuilder
from exporter.calibrated import Tokens
from exporter.errors import ExportError, ExportProblem, one_line
from exporter.progress import Progress, quiet
from serving.bundle import Bundle
from serving.errors import ServiceError
from vision_service.families import registry as vision_families
from vision_service.media import PreparedMedium

from .data import CalibrationData, Example

MOST_TOKENS = 4_096
"""Tokens of all examples together; what comes after is left out."""

_LONGEST = 1_024  # tokens of one example: attention is quadratic in them


def encode(bundle: Bundle, data: CalibrationData, *, progress: Progress) -> list[Tokens]:
    """Lay the examples out, pictures encoded in float32 by the bundle's own encoder.

    Args:
        bundle: has encoder and tokenizer; its graphs need not be there.
        data: the examples; without pictures if the bundle has no encoder.
        progress: shows a bar.

    Returns:
        At least one example, `MOST_TOKENS` tokens at most.
    """
    encoded, left = [], MOST_TOKENS
    with quiet():
        layout = _Layout(bundle)
        with progress.bar("calibration data", total=len(data.examples), unit="examples") as advance:
            for example in data.examples:
                if left > 0:
                    encoded.append(layout.tokens(example, most=min(left, _LONGEST)))
                    left -= len(encoded[-1].ids)
                advance(1)
        del layout
    gc.collect()
    return encoded


class _Layout:
    """Lays examples out; holds the encoder, if there is one."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._builder = PromptBuilder.load(bundle.decoder_dir, decoder_families.family_of(bundle))
        self._pictures = _Pictures(bundle) if bundle.has_encoder else None

    def tokens(self, example: Example, most: int) -> Tokens:
        """The first tokens of an example."""
        features = np.empty((0, self._bundle.feature_width), np.float32)
        medium = None
        if example.picture is not None and self._pictures is not None:
            medium, features = self._pictures.encoded(example.picture)
        prompt = self._prompt(example, medium, len(features))
        is_media = np.zeros(prompt.engine_token_ids.size, np.bool_)
        for span in prompt.media:
            is_media[span.start : span.stop] = True
        is_media = is_media[:most]
        return Tokens(
            ids=prompt.engine_token_ids[:most].astype(np.int64),
            positions=prompt.positions[:, : len(is_media)],
            is_media=is_media,
            features=features[: is_media.sum()],
        )

    def _prompt(self, example: Example, medium: PreparedMedium | None, rows: int) -> Prompt:
        shown = chat.Medium(chat.MediaKind.IMAGE, "")
        parts = (chat.Text(example.prompt),) if medium is None else (shown, chat.Text(example.prompt))
        messages = [chat.Message(chat.Role.USER, parts)]
        if example.answer:
            messages.append(chat.Message(chat.Role.ASSISTANT, (chat.Text(example.answer),)))
        layouts = [] if medium is None else [chat.Layout(shown, medium.grid, rows, ())]
        try:
            return self._builder.expand(self._builder.render(messages), layouts)
        except ServiceError as error:
            raise ExportError(ExportProblem.CALIBRATION_LAYOUT, error=one_line(error)) from error


class _Pictures:
    """Encodes pictures in float32."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._family = vision_families.family_of(bundle)
        self._encoder = self._family.load_encoder(
            bundle.vision_dir,
            device=torch.device("cpu"),
            dtype=torch.float32,
            out_dtype=torch.float32,
            operators=True,
        )

    def encoded(self, picture: Image.Image) -> tuple[PreparedMedium, NDArray[np.float32]]:
        """The picture as the encoder takes it, and its features [rows, width]."""
        medium = self._family.fit_picture(self._bundle, picture)
        return medium, self._encoder.encode([medium])[0].numpy()
