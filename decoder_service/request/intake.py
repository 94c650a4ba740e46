"""The features of one request, from the first header to the last byte.

Every size is checked against the prompt, the context and the memory before anything is allocated for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder_service.chat import Layout, MediaKind, Medium, first_of_each
from decoder_service.engine import FeatureRows
from decoder_service.request.admission import Place, check_room
from decoder_service.request.decoder import Decoder
from decoder_service.request.feature_store import Features, encoder_name, media_key
from decoder_service.request.layout import checked_layout
from decoder_service.request.prompt import Rendered
from serving.errors import Reason, failure, invalid, too_large
from serving.tensors import TensorAssembler, dtype_name
from vlm.v1 import tensor_pb2, vision_pb2

_FLOAT_BYTES = 4


@dataclass(frozen=True, eq=False)
class _Arrival:
    """Features of one medium that are being received."""

    layout: Layout
    prompt_tokens: int
    tensor: TensorAssembler


class FeatureIntake:
    """Receives headers and chunks of the needed media, in any interleaving. Belongs to one event loop.

    A medium whose last byte has arrived is passed to the engine and to the feature store at once. If its header arrives
    again, because the sender could not know that, the repeated chunks are ignored: they have the same content.

    Media whose features are in the store are not needed. Their bytes are counted as if they had been sent: the store
    may evict them while this request still holds them.

    Args:
        decoder: What is loaded.
        rendered: The conversation.
        encoder_dtype: Type in which the encoder computes, as in `Opening.encoder_dtype`.
        max_tokens: Tokens of the answer that must fit in the context, as `Generation.must_fit`.
        place: The request's admission, which counts the bytes.
        cache_scope: As in `Opening`.

    Raises:
        ServiceError: RESOURCE_EXHAUSTED or INVALID_ARGUMENT if the prompt as known so far does not fit in the context
            or the memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        rendered: Rendered,
        encoder_dtype: tensor_pb2.DataType.ValueType,
        max_tokens: int | None,
        place: Place,
        *,
        cache_scope: str = "",
    ) -> None:
        self._decoder = decoder
        self._rendered = rendered
        self._encoder_dtype = encoder_dtype
        self._max_tokens = max_tokens
        self._place = place
        distinct = first_of_each(rendered.media)
        self._encoder = encoder_name(decoder.model.encoder_fingerprint, encoder_dtype)
        self._cache_scope = cache_scope
        self._keys = {index: self.key(rendered.media[index]) for index in distinct}
        self._kept = {
            index: features for index, key in self._keys.items() if (features := decoder.features.get(key)) is not None
        }
        self.needed = tuple(index for index in distinct if index not in self._kept)
        """Indices of the media to send, each distinct medium once."""
        self._arrivals: dict[int, _Arrival] = {}
        self._again: set[int] = set()  # complete media that are being sent again
        self._fixed: tuple[Layout, ...] | None = None  # set when the prompt is laid out
        self._rows: FeatureRows | None = None  # likewise
        self._check_room()
        if self._kept:
            self._hold("messages")

    def key(self, medium: Medium) -> str:
        """The key of a medium's features in the feature store and in the prefix cache."""
        return media_key(medium, self._encoder, self._cache_scope)

    @property
    def laid_out(self) -> bool:
        """Whether the layout of every medium is known."""
        return self._fixed is not None or all(i in self._known for i in self.needed)

    @property
    def complete(self) -> bool:
        """Whether all features have arrived."""
        return not self.missing

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices of the media whose features are incomplete."""
        return tuple(i for i in self.needed if i not in self._kept)

    async def header(self, index: int, header: vision_pb2.EncodeHeader) -> None:
        """Handle a header: the features of a medium start, or start again.

        Raises:
            ServiceError: It does not fit the medium, the model, the context or the memory.
        """
        self._check_index("header.media_index", index)
        if index in self._kept:
            self._again.add(index)
            return
        # Release the old features first: otherwise a restart would need room for both.
        self._arrivals.pop(index, None)
        model = self._decoder.model
        if header.encoder_fingerprint != model.encoder_fingerprint:
            raise failure(
                Reason.ENCODER_MISMATCH,
                "the features come from an encoder that this decoder was not made with: serve both from bundles of "
                "the same checkpoint",
                metadata={"expected": model.encoder_fingerprint, "actual": header.encoder_fingerprint[:128]},
            )
        if header.encoder_dtype != self._encoder_dtype and tensor_pb2.DATA_TYPE_UNSPECIFIED not in (
            header.encoder_dtype,
            self._encoder_dtype,
        ):
            raise failure(
                Reason.ENCODER_MISMATCH,
                f"the features were computed in {dtype_name(header.encoder_dtype)} and are expected in "
                f"{dtype_name(self._encoder_dtype)}: start all vision services with the same dtype",
            )
        path = f"features[{index}]"
        layout = checked_layout(
            header.layout,
            self._rendered.media[index],
            token_count=self._decoder.prompts.token_count,
            path=f"{path}.layout",
        )
        if self._fixed is not None and layout not in self._fixed:
            raise invalid("header.layout", "is not the one that the prompt was laid out with")
        # Before the timestamps of a video are tokenized: its feature rows alone may be too many.
        self._check_room(index, layout.token_count)
        tokens = layout.token_count
        if layout.medium.kind is MediaKind.VIDEO:
            tokens = await asyncio.to_thread(self._decoder.prompts.length, layout)
            self._check_room(index, tokens)
        self._hold(path, layout.token_count)
        size = layout.token_count * model.feature_width * _FLOAT_BYTES
        tensor = TensorAssembler(
            header.features, rows=layout.token_count, width=model.feature_width, max_bytes=size, path=path
        )
        self._arrivals[index] = _Arrival(layout, tokens, tensor)

    async def chunk(self, index: int, chunk: tensor_pb2.TensorChunk) -> None:
        """Handle a chunk of features.

        Raises:
            ServiceError: There was no header, or the chunk leaves a gap or exceeds the size.
        """
        self._check_index("chunk.media_index", index)
        if index in self._again:
            return
        if index in self._kept:
            raise invalid("chunk.media_index", f"is {index}, whose features have all come")
        arrival = self._arrivals.get(index)
        if arrival is None:
            raise invalid("chunk.media_index", f"is {index}, whose header has not come")
        arrival.tensor.add(chunk)
        if arrival.tensor.complete:
            await self._keep(index, arrival)

    def layouts(self) -> tuple[Layout, ...]:
        """The layout of each medium of the conversation, in order. Only when `laid_out`; fixes the layouts."""
        if self._fixed is None:
            by_medium = {known.layout.medium: known.layout for known in self._known.values()}
            self._fixed = tuple(by_medium[medium] for medium in self._rendered.media)
        return self._fixed

    def rows(self) -> FeatureRows:
        """Features of each medium of the conversation, in order; missing ones are added when they arrive.

        Only when `laid_out`.
        """
        if self._rows is None:
            self._rows = FeatureRows(layout.token_count for layout in self.layouts())
            for features in self._kept.values():
                self._hand_over(features)
        return self._rows

    async def _keep(self, index: int, arrival: _Arrival) -> None:
        """Handle the last byte of a medium."""
        rows = await asyncio.to_thread(_finite, arrival.tensor)
        if rows is None:
            raise failure(
                Reason.FEATURES_NOT_FINITE, f"the features of the medium {index} contain numbers that are not finite"
            )
        rows.flags.writeable = False
        features = Features(arrival.layout, arrival.prompt_tokens, rows)
        del self._arrivals[index]
        self._kept[index] = features
        self._decoder.features.put(self._keys[index], features)
        self._hand_over(features)

    def distrust(self) -> None:
        """Remove the request's features from the feature store: what the model computed of them is not finite."""
        for key in self._keys.values():
            self._decoder.features.forget(key)

    def _hand_over(self, features: Features) -> None:
        """Pass a medium's features to the engine, for each of its occurrences in the conversation."""
        if self._rows is not None:
            for place, medium in enumerate(self._rendered.media):
                if medium == features.layout.medium:
                    self._rows.put(place, features.rows)

    @property
    def _known(self) -> dict[int, Features | _Arrival]:
        """The media whose layout is known, by index."""
        return {**self._kept, **self._arrivals}

    def _hold(self, path: str, more: int = 0) -> None:
        """Reserve the bytes of all known features, and of `more` further rows."""
        rows = more + sum(known.layout.token_count for known in self._known.values())
        size = rows * self._decoder.model.feature_width * _FLOAT_BYTES
        limit = self._decoder.limits.max_feature_bytes
        if size > limit:
            raise too_large(
                path,
                f"brings this request's features to {size} bytes, over max_feature_bytes, which is {limit}",
                reason=Reason.FEATURES_TOO_LARGE,
                limit=limit,
            )
        self._place.hold_bytes(size)

    def _check_index(self, path: str, index: int) -> None:
        if index not in self.needed:
            raise invalid(path, f"is {index}; features are needed of {list(self.needed)}")

    def _check_room(self, index: int | None = None, tokens: int = 0) -> None:
        """Check the prompt as known so far, with `tokens` for the medium whose header has just arrived."""
        known = {i: medium.prompt_tokens for i, medium in self._known.items()}
        if index is not None:
            known[index] = tokens
        of_medium = {self._rendered.media[i]: count for i, count in known.items()}
        # A medium without a header counts as its placeholder.
        total = len(self._rendered.token_ids) + sum(of_medium.get(m, 1) - 1 for m in self._rendered.media)
        check_room(total, self._max_tokens, self._decoder.limits.context_length)


def _finite(tensor: TensorAssembler) -> NDArray[np.float32] | None:
    """The rows of complete features in float32, which may convert them; None if a number is not finite."""
    rows = tensor.array()
    return rows if np.isfinite(rows).all() else None
