"""The type to compute in: what decides it, and what features are in bfloat16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

import exporter
from serving.bundle import MANIFEST, Bundle, BundleError, EncoderType
from tests import pictures
from tests.checkpoints import make_checkpoint
from tests.vision_service.clips import noises
from tests.vision_service.conftest import LIMITS, error
from tests.vision_service.operators.here import needs_operators
from vision_service import dtype
from vision_service.dtype import choose_dtype, multiplies_bfloat16, stored_types
from vision_service.families import encoder
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Options, PreparedMedium
from vision_service.operators import Operators
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
def media(half_bundle: Bundle) -> list[PreparedMedium]:
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


def _cost(**divergences: float) -> dict[str, EncoderType]:
    return {name: EncoderType(divergence=value, positions=48) for name, value in divergences.items()}


@pytest.mark.parametrize("stored", [{"BF16"}, {"F32"}], ids=str)
@pytest.mark.parametrize(
    ("processor", "measured", "expected"),
    [
        ((True, True), _cost(int8=6e-4, bfloat16=2e-4), (torch.int8, "6.0e-04 nats of at most 5.0e-03")),
        ((True, True), _cost(int8=5e-3, bfloat16=2e-4), (torch.int8, "5.0e-03 nats")),
        ((True, True), _cost(int8=6e-3, bfloat16=2e-4), (torch.bfloat16, "int8 has a measured divergence of 6.0e-03")),
        (
            (True, True),
            _cost(int8=6e-3, bfloat16=6e-3),
            (torch.float32, "bfloat16 has a measured divergence of 6.0e-03"),
        ),
        ((True, True), _cost(bfloat16=2e-4), (torch.bfloat16, "int8 was not measured")),
        ((True, True), _cost(int8=6e-3), (torch.float32, "bfloat16 was not measured")),
        ((True, True), {}, (torch.float32, "int8 was not measured; bfloat16 was not measured")),
        ((True, False), _cost(int8=6e-4, bfloat16=2e-4), (torch.bfloat16, "no operators that are fast here")),
        ((True, False), _cost(int8=6e-4, bfloat16=6e-3), (torch.float32, "no operators that are fast here")),
        ((False, True), _cost(int8=6e-4, bfloat16=2e-4), (torch.float32, "no instructions")),
    ],
)
def test_what_was_measured_decides_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
    stored: set[str],
    processor: tuple[bool, bool],
    measured: dict[str, EncoderType],
    expected: tuple[torch.dtype, str],
) -> None:
    """`auto` is the fastest type that is fast here and within the bound, however the weights are stored."""
    multiplies, has_operators = processor
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda device: multiplies)
    monkeypatch.setattr(dtype, "stored_types", lambda folder: stored)
    monkeypatch.setattr(dtype, "find_operators", lambda device: object() if has_operators else None)
    chosen = choose_dtype("auto", CPU, Path("vision"), measured=measured)
    assert chosen.dtype is expected[0]
    assert expected[1] in chosen.reason


def test_int8_needs_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operators are turned off `auto` does not take int8, whatever was measured."""
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(dtype, "find_operators", lambda device: object())
    measured = _cost(int8=6e-4, bfloat16=2e-4)
    assert choose_dtype("auto", CPU, Path("vision"), measured=measured, operators=False).dtype is torch.bfloat16


def test_a_gpu_is_not_asked_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the weights' type decides, as without the field."""
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda device: True)
    for stored, expected in (({"BF16"}, torch.bfloat16), ({"F32"}, torch.float32)):
        monkeypatch.setattr(dtype, "stored_types", lambda folder, stored=stored: stored)
        assert choose_dtype("auto", GPU, Path("vision"), measured=_cost(int8=0, bfloat16=1)).dtype is expected


@needs_operators
@pytest.mark.parametrize(("divergence", "expected"), [(6e-4, "int8"), (6e-3, "bfloat16")])
async def test_the_service_goes_by_its_bundle(
    half_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, divergence: float, expected: str
) -> None:
    """A bundle whose int8 costs little is served in it; a planted divergence over the bound keeps `auto` from it."""
    root = shutil.copytree(half_bundle.root, tmp_path / "bundle")
    manifest = json.loads((root / MANIFEST).read_bytes())
    manifest["encoder_types"] = {
        "int8": {"divergence": divergence, "positions": 48},
        "bfloat16": {"divergence": 2e-4, "positions": 48},
    }
    (root / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.setattr(dtype, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(dtype, "find_operators", lambda device: Operators())
    service = VisionService(VisionSettings(bundle=root, device="cpu"))
    with structlog.testing.capture_logs() as lines:
        await service.start(lambda serving: None)
    await service.stop()
    assert [line["dtype"] for line in lines if "dtype" in line] == [expected] * 2


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "int8"])
def test_a_named_type_is_taken(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A setting that names a type is followed; neither the device nor the bundle is asked."""
    monkeypatch.delattr(dtype, "multiplies_bfloat16")
    monkeypatch.delattr(dtype, "stored_types")
    measured = _cost(int8=1, bfloat16=1)
    assert choose_dtype(name, CPU, Path("nowhere"), measured=measured).dtype is getattr(torch, name)


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


def test_bfloat16_is_close_to_float32(exact: Encoder, fast: Encoder, media: list[PreparedMedium]) -> None:
    """Each row's features are at a cosine of at least 0.999 to float32's; those of another row are not."""
    assert (fast.dtype, fast.out_dtype) == (torch.bfloat16, torch.float32)
    for medium in media:
        expected, got = exact.encode([medium])[0], fast.encode([medium])[0]
        assert torch.nn.functional.cosine_similarity(got, expected, dim=-1).min() >= 0.999
        if len(got) > 1:
            assert torch.nn.functional.cosine_similarity(got.roll(1, 0), expected, dim=-1).max() < 0.999


def test_packed_in_bfloat16(exact: Encoder, fast: Encoder, media: list[PreparedMedium]) -> None:
    """What a medium is packed with may change the last bits in bfloat16, by less than bfloat16 differs from float32."""
    packed = fast.encode(media)
    for medium, got in zip(media, packed, strict=True):
        alone = fast.encode([medium])[0]
        assert error(got, alone) <= error(alone, exact.encode([medium])[0])
