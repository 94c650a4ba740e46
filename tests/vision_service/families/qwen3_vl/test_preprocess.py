"""Images become patches exactly as transformers' Pillow backend makes them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.bundle import Bundle, BundleError
from serving.errors import Code, ServiceError
from tests.pictures import noise, png
from tests.vision_service.conftest import LIMITS, Transformers
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.media import Grid, Options, Range

SIZES = [
    (1, 1),
    (31, 33),
    (32, 32),
    (48, 80),
    (64, 64),
    (100, 75),
    (193, 191),
    (640, 480),
    (480, 640),
    (1280, 721),
    (20, 1000),
    (1000, 20),
    (5, 1000),
    (1600, 8),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_patches_equal_transformers(
    size: tuple[int, int], mode: str, preprocessor: Preprocessor, reference: Transformers
) -> None:
    """Grid and every pixel value are those of Qwen2VLImageProcessorPil, bit for bit."""
    image = noise(*size).convert(mode)
    expected = reference.images(images=[image], return_tensors="np")
    medium = preprocessor.prepare("image", png(image), Options())
    assert medium.grid == tuple(expected["image_grid_thw"][0])
    assert np.array_equal(medium.pixel_values(), expected["pixel_values"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    low=st.integers(1, 40_000),
    more=st.integers(0, 100_000),
)
def test_patches_equal_transformers_at_any_size(
    *, width: int, height: int, low: int, more: int, preprocessor: Preprocessor, reference: Transformers
) -> None:
    """So they are at any size and with any least and greatest area."""
    if max(width, height) > 200 * min(width, height):
        return
    image = noise(width, height)
    size = {"shortest_edge": low, "longest_edge": low + more}
    expected = reference.images(images=[image], size=size, return_tensors="np")
    medium = preprocessor.prepare("image", png(image), Options(min_pixels=low, max_pixels=low + more))
    assert medium.grid == tuple(expected["image_grid_thw"][0])
    assert np.array_equal(medium.pixel_values(), expected["pixel_values"])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (None, None, (100, 200)),
        (50, None, (50, 200)),
        (None, 150, (100, 150)),
        (300, None, (300, 300)),
        (None, 60, (60, 60)),
        (10, 20, (10, 20)),
    ],
)
def test_a_bound_given_alone_moves_the_other(low: int | None, high: int | None, expected: tuple[int, int]) -> None:
    """Whoever gives one bound gets it, also where it lies beyond the checkpoint's other."""
    assert Range(100, 200).override(low, high) == expected


def test_max_pixels_below_the_checkpoints_least(preprocessor: Preprocessor) -> None:
    """An image is as small as it is asked to be."""
    medium = preprocessor.prepare("image", png(noise(500, 500)), Options(max_pixels=32 * 32))
    assert medium.grid == Grid(1, 2, 2)


def test_too_many_patches_are_refused_before_decoding(bundle: Bundle) -> None:
    """The limit on patches is checked on the header: a file that could not even be decoded is refused for it."""
    strict = Preprocessor(bundle, dataclasses.replace(LIMITS, patches=8))
    whole = png(noise(100, 100))
    with pytest.raises(ServiceError) as caught:
        strict.prepare("image", whole[: len(whole) // 2], Options())
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "IMAGE_TOO_MANY_PATCHES")
    assert caught.value.metadata["limit"] == "8"
    assert "max_pixels" in caught.value.message


@pytest.mark.parametrize("kind", ["image", "video"])
def test_nothing_is_refused(kind: str, preprocessor: Preprocessor) -> None:
    """A file of no bytes is refused as such."""
    with pytest.raises(ServiceError) as caught:
        preprocessor.prepare(kind, b"", Options())  # type: ignore[arg-type]
    assert caught.value.reason == "MEDIA_EMPTY"
    assert caught.value.violations[0].field == "data"


def changed(bundle: Bundle, folder: Path, name: str, **fields: object) -> Bundle:
    """A copy of the bundle in which one settings file says something else."""
    shutil.copytree(bundle.root, folder)
    path = folder / "vision" / name
    raw = json.dumps({**json.loads(path.read_text()), **fields}).encode()
    path.write_bytes(raw)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"][f"vision/{name}"]["size"] = len(raw)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return Bundle.open(folder)


def test_settings_of_the_checkpoint_are_used(bundle: Bundle, tmp_path: Path) -> None:
    """Mean, deviation and bounds come from the bundle, also in the words of older files."""
    other = changed(
        bundle, tmp_path / "b", "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], min_pixels=128 * 128
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = noise(40, 40)
    expected = Qwen2VLImageProcessorPil.from_pretrained(other.vision_dir)(images=[image], return_tensors="np")
    medium = Preprocessor(other, LIMITS).prepare("image", png(image), Options())
    assert medium.grid == (1, 8, 8)
    assert np.array_equal(medium.pixel_values(), expected["pixel_values"])


def test_bounds_in_the_first_form(bundle: Bundle, tmp_path: Path) -> None:
    """`size` with `min_pixels` and `max_pixels`, as Qwen2-VL's files have it, is the same two bounds."""
    today = changed(
        bundle, tmp_path / "today", "preprocessor_config.json", size={"shortest_edge": 128**2, "longest_edge": 160**2}
    )
    first = changed(
        bundle, tmp_path / "first", "preprocessor_config.json", size={"min_pixels": 128**2, "max_pixels": 160**2}
    )
    for image in (noise(40, 40), noise(500, 300)):
        expected, medium = (Preprocessor(b, LIMITS).prepare("image", png(image), Options()) for b in (today, first))
        assert medium.grid == expected.grid
        assert np.array_equal(medium.patches, expected.patches)


@pytest.mark.parametrize("size", [{"longest_edge": 4096}, {"height": 64, "width": 64}, 64, {}])
def test_bounds_that_are_not_two_are_refused(size: object, bundle: Bundle, tmp_path: Path) -> None:
    """Another kind of size has no least and greatest number of pixels."""
    with pytest.raises(BundleError, match="has size = "):
        Preprocessor(changed(bundle, tmp_path / "b", "preprocessor_config.json", size=size), LIMITS)


@pytest.mark.parametrize("fields", [{"do_normalize": False}, {"resample": 2}, {"patch_size": 14}, {"merge_size": 4}])
def test_settings_that_are_not_done_are_refused(fields: dict[str, object], bundle: Bundle, tmp_path: Path) -> None:
    """A checkpoint that wants other preprocessing is not served wrongly."""
    other = changed(bundle, tmp_path / "b", "preprocessor_config.json", **fields)
    with pytest.raises(BundleError, match=next(iter(fields))):
        Preprocessor(other, LIMITS)
