"""The type to compute in: what decides it, and what features are in bfloat16."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

import exporter
from serving.bundle import Bundle, BundleError
from tests import pictures
from tests.checkpoints import make_checkpoint
from tests.vision_service.clips import noises
from tests.vision_service.conftest import LIMITS, error
from tests.vision_service.operators.here import needs_operators
from vision_service import dtype, encoder
from vision_service.dtype import choose_dtype, multiplies_bfloat16, stored_types
from vision_service.encoder import Encoder
from vision_service.media import Medium, Options
from vision_service.operators import Operators
from vision_service.preprocess import Preprocessor
from vision_service.service import VisionService
from vision_service.settings import VisionSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROBES = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.fixture(scope="module")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a checkpoint that is stored in bfloat16, as published ones are."""
    folder = tmp_path_factory.mktemp("bfloat16")
    return exporter.export(
        make_checkpoint(folder / "checkpoint", dtype=torch.bfloat16), folder / "bundle", precision="fp32"
    )


@pytest.fixture(scope="module")
def media(half_bundle: Bundle) -> list[Medium]:
    """Pictures of several shapes and a video between them."""
    preprocessor = Preprocessor(half_bundle, LIMITS)
    images = [
        preprocessor.prepare("image", pictures.png(pictures.noise(*size)), Options())
        for size in ((64, 64), (160, 96), (40, 400), (128, 128))
    ]
    video = preprocessor.prepare("video", pictures.video(noises(11), 5), Options())
    return [*images[:2], video, *images[2:]]


@pytest.fixture(scope="module")
def exact(half_bundle: Bundle) -> Encoder:
    """In float32."""
    return Encoder.load(half_bundle.vision_dir, device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def fast(half_bundle: Bundle) -> Encoder:
    """In bfloat16."""
    return Encoder.load(half_bundle.vision_dir, device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize(
    ("multiplies", "stored", "expected"),
    [
        (True, {"BF16"}, torch.bfloat16),
        (True, {"F32"}, torch.float32),
        (True, {"BF16", "F32"}, torch.float32),
        (True, {"F16"}, torch.float32),
        (False, {"BF16"}, torch.float32),
        (False, {"F32"}, torch.float32),
    ],
)
def test_the_device_and_the_bundle_decide(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    multiplies: bool,
    stored: set[str],
    expected: torch.dtype,
) -> None:
    """`auto` is bfloat16 where the device multiplies it and all weights are stored in it, else float32; it says why."""
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda asked: multiplies and asked == device)
    monkeypatch.setattr(dtype, "stored_types", lambda folder: stored)
    chosen, reason = choose_dtype("auto", device, Path("vision"))
    assert chosen is expected
    assert ("instructions" if not multiplies else "stored") in reason


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_named_type_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A setting that names a type is followed; neither the device nor the bundle is asked."""
    monkeypatch.delattr(dtype, "multiplies_bfloat16")
    monkeypatch.delattr(dtype, "stored_types")
    assert choose_dtype(name, CPU, Path("nowhere")).dtype is getattr(torch, name)


@pytest.mark.parametrize(
    ("has", "expected"), [((), False), (PROBES[:1], True), (PROBES[1:], True), (PROBES, True)], ids=str
)
def test_processors(monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], expected: bool) -> None:
    """AVX-512 BF16 or AMX multiplies bfloat16; a variable that limits oneDNN's instructions is heeded."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for probe in PROBES:
        monkeypatch.setattr(torch.cpu, probe, lambda probe=probe: probe in has)
    assert multiplies_bfloat16(CPU) is expected
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    assert not multiplies_bfloat16(CPU)


def test_a_build_without_the_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch that cannot say what the processor has computes in float32."""
    for probe in PROBES:
        monkeypatch.delattr(torch.cpu, probe)
    assert not multiplies_bfloat16(CPU)


def test_the_probes_are_there() -> None:
    """The pinned PyTorch has both of them: they are not public and might go."""
    assert all(callable(getattr(torch.cpu, probe)) for probe in PROBES)


def test_the_type_of_the_weights(half_bundle: Bundle, tmp_path: Path) -> None:
    """It is the checkpoint's own; one tensor of another type is seen, and an integer is not counted."""
    assert stored_types(half_bundle.vision_dir) == {"BF16"}
    tensors = load_file(half_bundle.vision_dir / "model.safetensors")
    save_file({**tensors, "count": torch.zeros(1, dtype=torch.int64)}, tmp_path / "model.safetensors")
    assert stored_types(tmp_path) == {"BF16"}
    save_file({**tensors, "merger.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    assert stored_types(tmp_path) == {"BF16", "F32"}


def test_damaged_weights_have_no_type(half_bundle: Bundle, tmp_path: Path) -> None:
    """Weights that are missing or cut are a bundle to be exported again."""
    with pytest.raises(BundleError, match="export the bundle again"):
        stored_types(tmp_path)
    shutil.copy(half_bundle.vision_dir / "model.safetensors", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:100])
    with pytest.raises(BundleError, match="export the bundle again"):
        stored_types(tmp_path)


async def test_the_service_takes_it_and_logs_why(half_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told nothing, a service computes in what the processor and its bundle decide, and its log says so."""
    for multiplies, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda device, answer=multiplies: answer)
        service = VisionService(VisionSettings(bundle=half_bundle.root, device="cpu"))
        with structlog.testing.capture_logs() as lines:
            await service.start(lambda serving: None)
        await service.stop()
        chosen, loaded = (one for one in lines if "dtype" in one)
        assert (chosen["event"], chosen["dtype"], loaded["dtype"]) == ("type chosen", name, name)
        assert "device" in chosen["reason"]


@needs_operators
async def test_the_service_uses_our_attention_unless_told_not_to(
    half_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 it does, with `--no-operators` and in float32 it does not; the log tells."""
    monkeypatch.setattr(encoder, "find_operators", lambda device, **_: Operators())
    for name, operators, expected in (
        ("bfloat16", True, True),
        ("bfloat16", False, False),
        ("float32", True, False),
    ):
        settings = VisionSettings(bundle=half_bundle.root, device="cpu", dtype=name, operators=operators)
        service = VisionService(settings)
        with structlog.testing.capture_logs() as lines:
            await service.start(lambda serving: None)
        await service.stop()
        assert [line["own_attention"] for line in lines if line["event"] == "encoder loaded"] == [expected]


def test_bfloat16_is_close_to_float32(exact: Encoder, fast: Encoder, media: list[Medium]) -> None:
    """Each row's features are at a cosine of at least 0.999 to float32's; those of another row are not."""
    assert (fast.dtype, fast.out_dtype) == (torch.bfloat16, torch.float32)
    for medium in media:
        expected, got = exact.encode([medium])[0], fast.encode([medium])[0]
        assert torch.nn.functional.cosine_similarity(got, expected, dim=-1).min() >= 0.999
        if len(got) > 1:
            assert torch.nn.functional.cosine_similarity(got.roll(1, 0), expected, dim=-1).max() < 0.999


def test_packed_in_bfloat16(exact: Encoder, fast: Encoder, media: list[Medium]) -> None:
    """What a medium is packed with may change the last bits in bfloat16, by less than bfloat16 differs from float32."""
    packed = fast.encode(media)
    for medium, got in zip(media, packed, strict=True):
        alone = fast.encode([medium])[0]
        assert error(got, alone) <= error(alone, exact.encode([medium])[0])
