"""What the families' encoders share: how they are loaded, and what they tell of themselves.

An encoder is independent of requests. For one thread at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch

from serving.bundle_error import BundleError, BundleProblem
from vision_service.cost import Cost
from vision_service.dtype import stored_types
from vision_service.families.tower import Tower
from vision_service.media import Advance, Cancelled, PreparedMedium
from vision_service.operators import find_operators


class CostOf(Protocol):
    """Computes the cost of a family's encoder."""

    def __call__(self, config: Any, dtype: torch.dtype, *, own_attention: bool) -> Cost:
        """The cost of an encoder with this config, whose linear layers compute in this type."""


class Encoder(abc.ABC):
    """The vision model of a family.

    Args:
        tower: Computes the features.
        out_dtype: Type of the features.
    """

    load_model: ClassVar[Callable[..., Any]]
    """Loads transformers' model from a bundle's `vision` directory, on a `device` and in a `dtype`."""
    make_tower: ClassVar[type[Any]]
    """The forward pass with its weights, a `Tower`."""
    cost_of: ClassVar[CostOf]
    """The cost of one encoder."""

    def __init__(self, tower: Tower, *, out_dtype: torch.dtype = torch.float32) -> None:
        self._tower: Any = tower  # each family's has its own call
        self._out_dtype = out_dtype
        self._config: Any = tower.config
        self.cost = self.cost_of(tower.config, self.dtype, own_attention=tower.own_attention)
        """The cost of encoding."""

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        out_dtype: torch.dtype = torch.float32,
        operators: bool = True,
    ) -> Self:
        """Load the encoder from a bundle's `vision` directory.

        Args:
            folder: Holds config.json and model.safetensors.
            device: Device of the encoder.
            dtype: Type in which it computes; int8: layers in 8 bits, by our operators.
            out_dtype: Type of the features.
            operators: Whether our own operators may be used, if the processor supports them.

        Raises:
            BundleError: A file is missing or damaged, or the weights are not those of the config.
            OperatorsError: The type is int8, and the operators cannot be used.
        """
        int8 = dtype is torch.int8
        found = find_operators(device, needed=int8) if operators or int8 else None
        try:
            model = cls.load_model(folder, device=device, dtype=_exact_type(folder) if int8 else dtype)
            return cls(cls.make_tower(model, found, int8=int8), out_dtype=out_dtype)
        except ValueError as error:
            raise BundleError(BundleProblem.ENCODER_UNSUPPORTED, folder=folder, error=error) from error

    @property
    @abc.abstractmethod
    def feature_width(self) -> int:
        """Columns of the features."""

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        device: torch.device = self._tower.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which it computes; int8 if its layers are in 8 bits."""
        return torch.int8 if self._tower.int8 else self._tower.dtype

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""
        return bool(self._tower.own_attention)

    @property
    def out_dtype(self) -> torch.dtype:
        """Type of the features."""
        return self._out_dtype

    @abc.abstractmethod
    def blank(self, side: int = 1) -> PreparedMedium:
        """An empty image, for warm-up and for measuring the speed; see `vision_service.family.Encoder`."""

    @abc.abstractmethod
    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = lambda: False, advance: Advance = lambda _: None
    ) -> list[torch.Tensor]:
        """Encode media in one forward pass; see `vision_service.family.Encoder`."""

    def _to_out(self, features: torch.Tensor) -> torch.Tensor:
        if self._out_dtype is torch.float16 and features.dtype is not torch.float16:
            largest = torch.finfo(torch.float16).max
            features = features.clamp(-largest, largest)  # an infinity would make the whole answer invalid
        return features.to("cpu", self._out_dtype)


def _exact_type(folder: Path) -> torch.dtype:
    """The smallest type that represents the stored weights exactly."""
    return torch.bfloat16 if stored_types(folder) == {"BF16"} else torch.float32
