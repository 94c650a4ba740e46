"""The encoder: one forward pass computes the features of several media from their patches.

It is independent of requests. For one thread at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from serving.bundle_error import BundleError, BundleProblem
from vision_service.cost import Cost
from vision_service.dtype import stored_types
from vision_service.families.qwen.tower import Tower
from vision_service.media import Advance, Cancelled, Grid, PreparedMedium
from vision_service.operators import find_operators

M = TypeVar("M", bound=PreTrainedModel)


class CostOf(Protocol):
    """Computes the cost of a family's encoder."""

    def __call__(self, config: Any, dtype: torch.dtype, *, own_attention: bool) -> Cost:
        """The cost of an encoder with this config, whose linear layers compute in this type."""


class Encoder:
    """The vision model of one of Qwen's families.

    Args:
        tower: Computes the features.
        out_dtype: Type of the features.
    """

    model: ClassVar[type[PreTrainedModel]]
    """Transformers' class of the model."""
    make_tower: ClassVar[type[Tower]]
    """The forward pass with its weights."""
    cost_of: ClassVar[CostOf]
    """The cost of one encoder."""

    def __init__(self, tower: Tower, *, out_dtype: torch.dtype = torch.float32) -> None:
        self._tower = tower
        self._out_dtype = out_dtype
        self._config = tower.config
        self._merge = tower.config.spatial_merge_size
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
            model = load_model(folder, cls.model, device=device, dtype=_exact_type(folder) if int8 else dtype)
            return cls(cls.make_tower(model, found, int8=int8), out_dtype=out_dtype)
        except ValueError as error:
            raise BundleError(BundleProblem.ENCODER_UNSUPPORTED, folder=folder, error=error) from error

    @property
    def feature_width(self) -> int:
        """Columns of the features: those of each map, side by side."""
        return self._tower.maps * int(self._config.out_hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self._tower.device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which it computes; int8 if its layers are in 8 bits."""
        return torch.int8 if self._tower.int8 else self._tower.dtype

    @property
    def own_attention(self) -> bool:
        """Whether attention is computed by our operators."""
        return self._tower.own_attention

    @property
    def out_dtype(self) -> torch.dtype:
        """Type of the features."""
        return self._out_dtype

    def blank(self, side: int = 1) -> PreparedMedium:
        """An empty image, for warm-up and for measuring the speed.

        Args:
            side: Tokens along each of its sides.
        """
        config: Any = self._config
        patches = self._merge * side
        shape = (patches**2, config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
        levels = np.zeros((config.in_channels, 256), np.float32)
        return PreparedMedium("image", Grid(1, patches, patches), np.zeros(shape, np.uint8), levels)

    def encode(
        self, media: Sequence[PreparedMedium], cancelled: Cancelled = lambda: False, advance: Advance = lambda _: None
    ) -> list[torch.Tensor]:
        """Encode media packed one after another; each frame attends only to itself.

        Args:
            media: At least one.
            cancelled: Called before each layer; True stops the work.
            advance: Called after each layer with the finished share.

        Returns:
            For each medium [grid.patches / merge^2, feature_width] in `out_dtype` on the CPU: its feature maps side by
            side. Each owns its memory.

        Raises:
            WorkCancelledError: `cancelled` returned True.
        """
        with torch.inference_mode():
            # 1. Concatenate the patches of all media: [sum of patches, channels x temporal x patch x patch]
            pixels = torch.from_numpy(np.concatenate([medium.pixel_values() for medium in media]))
            # 2. The forward: maps of [sum of tokens, hidden]
            maps = self._tower(
                pixels.to(self.device, self._tower.dtype), [medium.grid for medium in media], cancelled, advance
            )
            # 3. Split it again, the maps of each medium side by side
            tokens = [medium.grid.patches // self._merge**2 for medium in media]
            pieces = zip(*(torch.split(one, tokens) for one in maps), strict=True)
            return [self._to_out(torch.cat(piece, dim=-1)) for piece in pieces]

    def _to_out(self, features: torch.Tensor) -> torch.Tensor:
        if self._out_dtype is torch.float16 and features.dtype is not torch.float16:
            largest = torch.finfo(torch.float16).max
            features = features.clamp(-largest, largest)  # an infinity would make the whole answer invalid
        return features.to("cpu", self._out_dtype)


def load_model(folder: Path, kind: type[M], *, device: torch.device, dtype: torch.dtype) -> M:
    """Load transformers' model from a bundle's `vision` directory.

    It is built without storage and then gets the file's tensors one by one, so that memory holds the weights once.

    Args:
        folder: Holds config.json and model.safetensors.
        kind: The model's class.
        device: Device of the encoder.
        dtype: Type in which it computes.

    Raises:
        BundleError: A file is missing or damaged, or the weights are not those of the config.
    """
    try:
        stored = json.loads((folder / "config.json").read_bytes())["vision_config"]
        config = kind.config_class.from_dict(stored)  # type: ignore[union-attr]  # every model has one
        with torch.device("meta"):
            model = kind(config)
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            weights = {
                name: file.get_tensor(name).to(device, dtype, copy=True)
                for name in file.keys()  # noqa: SIM118  # a file, not a mapping
            }
        model.load_state_dict(weights, strict=True, assign=True)
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise BundleError(BundleProblem.ENCODER_UNREADABLE, folder=folder, error=error) from error
    except RuntimeError as error:  # load_state_dict lists the missing names, one per line
        raise BundleError(BundleProblem.ENCODER_WEIGHTS, folder=folder, error=_one_line(error)) from error
    # Not in the weights: computed from the config, and without storage so far.
    rotary: Any = model.rotary_pos_emb
    model.rotary_pos_emb = type(rotary)(config).to(device)
    model.requires_grad_(False)
    model.train(False)
    return model


def _exact_type(folder: Path) -> torch.dtype:
    """The smallest type that represents the stored weights exactly."""
    return torch.bfloat16 if stored_types(folder) == {"BF16"} else torch.float32


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"
