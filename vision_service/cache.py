"""Feature maps that were computed before, kept by what they are features of, bounded in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from serving.recent import Recent
from vision_service.media import Grid, Kind, Options, PreparedMedium


class Key(NamedTuple):
    """Names a feature map: equal keys, equal features, as long as the process and with it the encoder is the same."""

    digest: str
    kind: Kind
    options: Options

    @classmethod
    def of(cls, digest: str, kind: Kind, options: Options) -> Key:
        """The key of a medium.

        Args:
            digest: Of the file's bytes.
            kind: What they are.
            options: How they become pixels; those that say nothing about this kind make no difference.
        """
        return cls(digest, kind, options.that_matter(kind))


class Layout(NamedTuple):
    """What is known of a medium before it is encoded, as `PreparedMedium` has it."""

    grid: Grid
    timestamps: tuple[float, ...] = ()
    size_given: tuple[int, int] = (0, 0)
    frame_times: tuple[float, ...] = ()

    @classmethod
    def of(cls, medium: PreparedMedium) -> Layout:
        """The layout of a medium."""
        return cls(medium.grid, medium.timestamps, medium.size_given, medium.frame_times)


@dataclass(frozen=True)
class Encoded:
    """A medium's features and their layout.

    Attributes:
        layout: The medium's.
        features: [tokens, feature width], in memory of its own. Never written to.
    """

    layout: Layout
    features: torch.Tensor

    @property
    def nbytes(self) -> int:
        """The memory that the features take. The few hundred bytes around them are not counted."""
        return self.features.untyped_storage().nbytes()


class FeatureCache(Recent[Key, Encoded]):
    """Keeps what was used last.

    Args:
        max_bytes: Most that the features may take together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda encoded: encoded.nbytes)
