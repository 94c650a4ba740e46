"""The encoder in 8 bits: its features, its memory, and where it is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporter
from benchmarks.outliers import add_encoder_outliers
from serving.bundle import Bundle
from serving.server import StartError
from tests import pictures
from tests.checkpoints import make_checkpoint
from tests.vision_service.clips import noises
from tests.vision_service.conftest import LIMITS, error
from tests.vision_service.families.qwen3_vl.test_tower import draw_pixels, ignore, make_model, never
from tests.vision_service.operators.here import needs_operators
from vision_service import linear, operators
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.families.qwen3_vl.tower import Tower
from vision_service.media import Grid, Options, PreparedMedium
from vision_service.operators import Operators, OperatorsError, RoundedWeights
from vision_service.service import VisionService
from vision_service.settings import VisionSettings
from vlm.v1 import tensor_pb2

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def media(bundle: Bundle) -> list[PreparedMedium]:
    """Pictures of several shapes and a video between them."""
    preprocessor = Preprocessor(bundle, LIMITS)
    images = [
        preprocessor.prepare("image", pictures.png(pictures.noise(*size)), Options())
        for size in ((64, 64), (160, 96), (40, 400), (128, 128))
    ]
    video = preprocessor.prepare("video", pictures.video(noises(11), 5), Options())
    return [*images[:2], video, *images[2:]]


def load(bundle: Bundle, dtype: torch.dtype) -> Encoder:
    """The bundle's encoder."""
    return Encoder.load(bundle.vision_dir, device=CPU, dtype=dtype)


def cosine(one: Tensor, other: Tensor) -> float:
    """The least cosine of a row."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=-1).min())


@needs_operators
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_features_are_close_to_float32(tmp_path: Path, media: list[PreparedMedium], stored: torch.dtype) -> None:
    """Each row is at a cosine of 0.995 to float32's at least; another row's is not (negative control)."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dtype=stored)
    bundle = exporter.export(checkpoint, tmp_path / "bundle", precision="fp32")
    exact, rounded = load(bundle, torch.float32), load(bundle, torch.int8)
    assert (rounded.dtype, rounded.out_dtype) == (torch.int8, torch.float32)
    for medium in media:
        expected, got = exact.encode([medium])[0], rounded.encode([medium])[0]
        assert cosine(got, expected) >= 0.995
        if len(got) > 1:
            assert cosine(got.roll(1, 0), expected) < 0.995


@needs_operators
def test_outliers_are_evened_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outliers of norms, values and the feed-forward part cost little; negative control: they would cost much."""
    source = make_checkpoint(tmp_path / "checkpoint", dtype=torch.float32)
    planted = add_encoder_outliers(source, tmp_path / "planted", largest=200.0)
    bundle = exporter.export(planted, tmp_path / "bundle", precision="fp32")
    medium = Preprocessor(bundle, LIMITS).prepare("image", pictures.png(pictures.noise(160, 96)), Options())
    (expected,) = load(bundle, torch.float32).encode([medium])
    (evened,) = load(bundle, torch.int8).encode([medium])
    monkeypatch.setattr(linear, "column_factors", lambda weight: torch.ones_like(weight[0]))
    (kept,) = load(bundle, torch.int8).encode([medium])
    assert cosine(evened, expected) >= 0.99
    assert 1 - cosine(kept, expected) > 5 * (1 - cosine(evened, expected))


@needs_operators
def test_packed_equals_alone(bundle: Bundle, media: list[PreparedMedium]) -> None:
    """What a medium is packed with changes less than 8 bits cost, if anything."""
    exact, rounded = load(bundle, torch.float32), load(bundle, torch.int8)
    for medium, got in zip(media, rounded.encode(media), strict=True):
        alone = rounded.encode([medium])[0]
        assert error(got, alone) <= 0.5 * error(alone, exact.encode([medium])[0])


@needs_operators
def test_frames_see_only_themselves() -> None:
    """Changing one frame changes no bit of another's features."""
    model = make_model()
    tower = Tower(copy.deepcopy(model), Operators(), int8=True)
    pixels = draw_pixels(model, [Grid(3, 4, 4)]).bfloat16()
    changed = pixels.clone()
    changed[16:32] += 1
    with torch.inference_mode():
        before, after = (tower(one, [Grid(3, 4, 4)], never, ignore)[0].split(4) for one in (pixels, changed))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


@needs_operators
def test_every_layer_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights but those of the patches and positions take a byte each, with the scales beside them."""
    taken: list[RoundedWeights] = []
    of = RoundedWeights.of

    def watched(weight: Tensor, bias: Tensor, **given: Tensor) -> RoundedWeights:
        taken.append(of(weight, bias, **given))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr(RoundedWeights, "of", watched)
    model = make_model(hidden_size=256, intermediate_size=512)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    Tower(model, Operators(), int8=True)
    assert len(taken) == len(layers)
    assert sum(one.packed.nbytes for one in taken) == pytest.approx(weights, rel=0.05)  # outputs are filled up
    assert all(layer.weight is None for layer in layers)


async def test_where_it_cannot_be_computed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the operators, or with them turned off, the service does not start, and says why in one sentence."""

    async def why(**settings: bool) -> str:
        service = VisionService(VisionSettings(bundle=bundle.root, device="cpu", dtype="int8", **settings))
        with pytest.raises(StartError) as caught:
            await service.start(lambda serving: None)
        await service.stop()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "turned off" in await why(operators=False)
    monkeypatch.setattr(operators, "cpu_flags", set)
    assert "avx512_bf16" in await why()
    with pytest.raises(OperatorsError, match="for the CPU"):
        Encoder.load(bundle.vision_dir, device=torch.device("cuda"), dtype=torch.int8)
    with pytest.raises(ValueError, match="int8 is computed by our operators"):
        Tower(make_model(), int8=True)


@needs_operators
async def test_the_service_tells(bundle: Bundle) -> None:
    """It starts in int8, and the type is known to those who ask for the encoder."""
    service = VisionService(VisionSettings(bundle=bundle.root, device="cpu", dtype="int8"))
    await service.start(lambda serving: None)
    await service.stop()
    assert service._servicer is not None
    assert service._servicer._info.dtype == tensor_pb2.DATA_TYPE_INT8
