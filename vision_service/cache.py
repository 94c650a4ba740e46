"""Cache of computed features, with a limit in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from serving.recent import Recent
from vision_service.media import Grid, Kind, Options, PreparedMedium


class Key(NamedTuple):
    """The key of features: equal keys mean equal features, within one process with its encoder."""

    digest: str
    kind: Kind
    options: Options
    scope: str = ""

    @classmethod
    def of(cls, digest: str, kind: Kind, options: Options, scope: str = "") -> Key:
        """The key of a medium.

        Args:
            digest: Digest of the file.
            kind: Image or video.
            options: Preprocessing options; those of the other kind are ignored.
            scope: Scope of the request, see `gateway.cache_scope`.
        """
        return cls(digest, kind, options.that_matter(kind), scope)


class Layout(NamedTuple):
    """The layout of a medium, known before it is encoded; fields as in `PreparedMedium`."""

    grid: Grid
    timestamps: tuple[float, ...] = ()
    size_given: tuple[int, int] = (0, 0)
    size_used: tuple[int, int] = (0, 0)
    frame_times: tuple[float, ...] = ()

    @classmethod
    def of(cls, medium: PreparedMedium) -> Layout:
        """The layout of a medium."""
        return cls(medium.grid, medium.timestamps, medium.size_given, medium.size_used, medium.frame_times)


@dataclass(frozen=True)
class Encoded:
    """A medium's features and their layout.

    Attributes:
        layout: The medium's layout.
        features: [tokens, feature width], in its own memory; must not be changed.
    """

    layout: Layout
    features: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the features. The few hundred bytes around them are not counted."""
        return self.features.untyped_storage().nbytes()


class FeatureCache(Recent[Key, Encoded]):
    """LRU cache of features.

    Args:
        max_bytes: Most bytes of all features; 0 disables the cache.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda encoded: encoded.nbytes)
