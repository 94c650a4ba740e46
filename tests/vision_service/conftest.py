"""A tiny random checkpoint, exported; what transformers makes of it, and what the vision service does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import exporter
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.measuring import unmeasured
from tests.vision_service.gated import GatedEncoder
from vision_service.clip import VideoLimits
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.family import PreprocessLimits

LIMITS = PreprocessLimits(
    image_pixels=4_000_000,
    video=VideoLimits(seconds=120.0, frames=2_000, sampled=64, pixels=1_000_000),
    patches=8_192,
)


@dataclass(frozen=True)
class Transformers:
    """The whole model and the image processor, as transformers loads them."""

    model: Any
    images: Any


def error(got: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray) -> float:
    """The greatest difference, as a share of the greatest expected feature (some ten, in these checkpoints)."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.fixture(autouse=True, scope="session")
def _unmeasured() -> Iterator[None]:
    """Exports do not measure what the encoder's types cost."""
    with unmeasured():
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with two DeepStack levels that are not the first two layers."""
    return make_checkpoint(tmp_path_factory.mktemp("vision") / "checkpoint", deepstack=(0, 2), layers=3)


@pytest.fixture(scope="session")
def bundle(checkpoint: Path) -> Bundle:
    """Its bundle."""
    return exporter.export(checkpoint, checkpoint.parent / "bundle", precision="fp32")


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Transformers:
    """The checkpoint in transformers, in fp32."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return Transformers(model, Qwen2VLImageProcessorPil.from_pretrained(checkpoint))


@pytest.fixture(scope="session")
def preprocessor(bundle: Bundle) -> Preprocessor:
    """The service's preprocessor with `LIMITS`."""
    return Preprocessor(bundle, LIMITS)


@pytest.fixture(scope="session")
def encoder(bundle: Bundle) -> Encoder:
    """The service's encoder in fp32 on the CPU. Used by one test at a time."""
    return Encoder.load(bundle.vision_dir, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def gated(bundle: Bundle) -> GatedEncoder:
    """An encoder with its gate open."""
    return GatedEncoder(Encoder.load(bundle.vision_dir, device=torch.device("cpu"), dtype=torch.float32))
