"""transformers' image processor of Phi-4-multimodal, with torchvision or, without it, with the calls that it makes.

`tests/phi4/run` has torchvision, so that the pixels are compared with the real processor's.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812  # the usual name
from transformers import image_processing_backends as backends

REAL = importlib.util.find_spec("torchvision") is not None
"""Whether torchvision is installed."""

_NAME = "transformers.models.phi4_multimodal.image_processing_phi4_multimodal"
_TORCHVISION = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.v2",
    "torchvision.transforms.v2.functional",
)


class InterpolationMode(enum.Enum):
    """The names that the processor uses."""

    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


def resize(
    image: torch.Tensor,
    size: Sequence[int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    *,
    antialias: bool = True,
) -> torch.Tensor:
    """As torchvision on a CPU with AVX2: bytes are resized as bytes."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(
        image[None], size=tuple(size), mode=interpolation.value, align_corners=False, antialias=antialias
    )[0]


def pad(image: torch.Tensor, padding: Sequence[int], fill: Sequence[int]) -> torch.Tensor:
    """Left, top, right, bottom, with one value."""
    left, top, right, bottom = padding
    assert len(set(fill)) == 1
    return F.pad(image, [left, right, top, bottom], value=fill[0])


def normalize(image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Channel by channel."""
    del inplace
    return (image - mean[:, None, None]) / std[:, None, None]


def _imported() -> tuple[ModuleType, ModuleType]:
    """The processor's module, and the functions of torchvision that it calls."""
    if REAL:
        return importlib.import_module(_NAME), importlib.import_module(_TORCHVISION[-1])
    absent = {name: ModuleType(name) for name in _TORCHVISION}
    functional = absent[_TORCHVISION[-1]]
    vars(functional).update(resize=resize, pad=pad, normalize=normalize, InterpolationMode=InterpolationMode)
    vars(absent[_TORCHVISION[-2]])["functional"] = functional
    with mock.patch.dict(sys.modules, absent):
        return importlib.import_module(_NAME), functional


MODULE, FUNCTIONAL = _imported()


def image_processor(**settings: Any) -> Any:
    """The processor, called with `images` and `return_tensors`."""
    return MODULE.Phi4MultimodalImageProcessor(**settings) if REAL else _StandIn(settings)


class _StandIn:
    """The processor's own methods over the calls above."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self, *, images: Sequence[Any], return_tensors: str) -> Any:
        """As the processor's call."""
        kind = MODULE.Phi4MultimodalImageProcessor
        one = object.__new__(kind)
        names = ("size", "patch_size", "dynamic_hd", "image_mean", "image_std", "do_rescale", "do_normalize")
        given = {name: self._settings.get(name, getattr(kind, name)) for name in names}
        size = backends.SizeDict(**given.pop("size"))
        given |= {name: tuple(given[name]) for name in ("image_mean", "image_std")}
        with mock.patch.object(backends, "tvF", FUNCTIONAL, create=True):
            return one._preprocess(
                [one.process_image(image, do_convert_rgb=True) for image in images],
                do_resize=True,
                size=size,
                resample=InterpolationMode.BICUBIC,
                rescale_factor=1 / 255,
                return_tensors=return_tensors,
                **given,
            )
