"""The size of images, their number of crops, and what is refused."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.bundle_error import BundleError
from serving.errors import Code, ServiceError
from tests.pictures import noise, png
from tests.vision_service.conftest import LIMITS
from tests.vision_service.families.phi4_multimodal.conftest import Made
from tests.vision_service.families.phi4_multimodal.torchvision_free import FUNCTIONAL, MODULE
from vision_service.budget import default_budget, published_budget
from vision_service.families.phi4_multimodal.crops import Crops, canvas_of, token_count
from vision_service.families.phi4_multimodal.preprocess import Picture, Preprocessor, fit_picture
from vision_service.families.phi4_multimodal.settings import Defaults
from vision_service.family import PreprocessLimits
from vision_service.media import Options

CROP = 56 * 56
PROCESSOR = MODULE.Phi4MultimodalImageProcessor


def _by_transformers(width: int, height: int, crop: int, most: int) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height after resizing, and the mask, as the processor computes them."""
    resized: list[tuple[int, int]] = []

    def note(image: Any, size: list[int]) -> Any:
        resized.append((size[1], size[0]))
        return image

    image = SimpleNamespace(shape=(3, height, width), device="cpu")
    with (
        mock.patch.object(FUNCTIONAL, "resize", note),
        mock.patch.object(FUNCTIONAL, "pad", lambda image, *_, **__: image),
    ):
        _, mask = object.__new__(PROCESSOR).dynamic_preprocess(image, crop, 14, crop // 14, max_num=most)
    return resized[0], mask.numpy()


sides = st.one_of(st.integers(1, 2_000), st.sampled_from([56, 112, 448, 449, 896, 1344, 4032, 8000]))


@settings(deadline=None, max_examples=400)
@given(width=sides, height=sides, crop=st.sampled_from([28, 42, 56, 61, 448]), most=st.sampled_from([1, 2, 5, 12, 36]))
def test_canvas_mask_and_tokens_equal_transformers(width: int, height: int, crop: int, most: int) -> None:
    """Of any size: the same pixels, the same patches masked, and as many tokens as the mask has."""
    try:
        size, mask = _by_transformers(width, height, crop, most)
    except ValueError:
        with pytest.raises(ValueError, match="no side may have less than 10"):
            canvas_of(width, height, crop, most)
        return
    canvas = canvas_of(width, height, crop, most)
    side = crop // 14
    assert canvas.size == size
    assert mask.shape == (canvas.rows * side, canvas.columns * side)
    seen = (
        canvas.rows * side - (canvas.rows * crop - size[1]) // 14,
        canvas.columns * side - (canvas.columns * crop - size[0]) // 14,
    )
    expected = np.zeros_like(mask)
    expected[: seen[0], : seen[1]] = 1
    assert np.array_equal(mask, expected)
    crops = Crops(side, *seen)
    edge = -(-side // 2)
    cut = mask.reshape(canvas.rows, side, canvas.columns, side)[:, 0::2, :, 0::2].reshape(canvas.rows * edge, -1)
    assert crops.grid == (1, 2 * cut[:, 0].sum(), 2 * cut[0].sum())
    assert token_count(crops.grid, side) == cut.sum() + cut[:, 0].sum() + 1 + edge * (edge + 1)


def test_tokens_of_the_published_shape() -> None:
    """As the processor counts them, which knows only this one."""
    assert token_count(Crops(32, 64, 96).grid, 32) == 256 + 1 + 32 * 48 + 32 + 16
    assert token_count(Crops(32, 31, 17).grid, 32) == 256 + 1 + 16 * 9 + 16 + 16


def test_the_defaults_are_transformers() -> None:
    """What a settings file leaves out is as the class has it."""
    names = [name for name, _ in inspect.getmembers(Defaults) if not name.startswith("_")]
    assert "dynamic_hd" in names
    for name in set(names) - {"rescale_factor"}:
        value = getattr(PROCESSOR, name)
        assert getattr(Defaults, name) == (int(value) if name == "resample" else value), name
    assert PROCESSOR.rescale_factor == Defaults.rescale_factor


@pytest.mark.parametrize(
    ("pixels", "crops", "size"),
    [
        (None, 9, (168, 112)),
        (9 * CROP, 9, (168, 112)),
        (100 * CROP, 9, (168, 112)),
        (5 * CROP, 4, (112, 74)),
        (4 * CROP - 1, 2, (84, 56)),
        (1, 1, (56, 37)),
    ],
)
def test_max_pixels_bounds_the_crops(pixels: int | None, crops: int, size: tuple[int, int], phi4: Made) -> None:
    """At least one crop, at most the checkpoint's own; the size in use has no padding."""
    medium = Preprocessor(phi4.bundle, LIMITS).prepare("image", png(noise(300, 200)), Options(max_pixels=pixels))
    assert isinstance(medium, Picture)
    assert sum(len(row) for row in medium.crops.tiles) <= crops
    assert (medium.size_given, medium.size_used) == ((300, 200), size)


def test_min_pixels_has_no_effect(phi4: Made) -> None:
    """An image fills its canvas in one direction anyway."""
    preprocessor = Preprocessor(phi4.bundle, LIMITS)
    one, other = (
        preprocessor.prepare("image", png(noise(40, 30)), Options(min_pixels=least)) for least in (None, 10**6)
    )
    assert isinstance(one, Picture)
    assert isinstance(other, Picture)
    assert one.crops == other.crops == Crops(4, 3, 4)


def test_budgets(phi4: Made) -> None:
    """`detail="original"` takes the checkpoint's own; on a CPU the default is less. Videos have none."""
    published = Preprocessor(phi4.bundle, LIMITS).published
    assert published == Options(max_pixels=9 * CROP)
    message = published_budget(published)
    assert [field.name for field, _ in message.ListFields()] == ["max_pixels"]
    none: dict[str, Any] = {"max_pixels": None, "max_video_pixels": None, "max_frames": None}
    large = Options(max_pixels=36 * 448 * 448)
    for on_cpu, expected in ((True, 1 << 20), (False, 36 * 448 * 448)):
        budget = default_budget(large, on_cpu=on_cpu, **none)
        assert budget.max_pixels == expected
        assert [field.name for field, _ in budget.ListFields()] == ["max_pixels"]
    assert (1 << 20) // 448**2 == 5


def _refused(made: Made, width: int, height: int, **given: Any) -> ServiceError:
    limits = PreprocessLimits(LIMITS.image_pixels, LIMITS.video, given.pop("patches", LIMITS.patches))
    with pytest.raises(ServiceError) as caught:
        Preprocessor(made.bundle, limits).prepare("image", png(noise(width, height)), Options(**given))
    return caught.value


def test_what_is_refused(phi4: Made) -> None:
    """With a stable reason, the field, and what to do."""
    preprocessor = Preprocessor(phi4.bundle, LIMITS)
    with pytest.raises(ServiceError, match="takes text and images") as caught:
        preprocessor.prepare("video", b"anything", Options())
    assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "MEDIA_NOT_SUPPORTED")
    assert caught.value.violations[0].field == "kind"
    with pytest.raises(ServiceError, match="empty") as caught:
        preprocessor.prepare("image", b"", Options())
    assert caught.value.reason == "MEDIA_EMPTY"
    thin = _refused(phi4, 1000, 7)
    assert (thin.code, thin.reason) == (Code.INVALID_ARGUMENT, "IMAGE_ASPECT_RATIO")
    assert "504 x 3 pixels" in thin.message
    assert "max_pixels" not in thin.message
    assert "or raise max_pixels" in _refused(phi4, 600, 60, max_pixels=CROP).message
    many = _refused(phi4, 300, 200, patches=64)
    assert (many.code, many.reason, many.metadata) == (
        Code.RESOURCE_EXHAUSTED,
        "IMAGE_TOO_MANY_PATCHES",
        {"limit": "64"},
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": {"height": 448, "width": 448}}, "size"),
        ({"patch_size": 16}, "patch_size"),
        ({"resample": 2}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"dynamic_hd": 0}, "dynamic_hd"),
        ({"dynamic_hd": 100_000}, "dynamic_hd"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "image_mean and image_std must have 3 numbers"),
        ({"rescale_factor": 0}, "ZeroDivisionError"),
    ],
)
def test_settings_that_are_refused(changed: dict[str, Any], message: str, phi4: Made, tmp_path: Path) -> None:
    """By their names, when the service starts."""
    path = phi4.bundle.vision_dir / "preprocessor_config.json"
    stored = path.read_text()
    bundle = phi4.bundle.model_copy()
    bundle._root = tmp_path
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / path.name).write_text(json.dumps({**json.loads(stored), **changed}))
    with pytest.raises(BundleError, match=message):
        Preprocessor(bundle, LIMITS)


def test_a_picture_for_measurements(phi4: Made) -> None:
    """In as many crops as the checkpoint allows, whatever the service's limits are."""
    medium = fit_picture(phi4.bundle, noise(300, 200))
    assert isinstance(medium, Picture)
    assert medium.size_used == (168, 112)
    shown = Preprocessor(phi4.bundle, LIMITS).prepare("image", png(noise(300, 200)), Options())
    assert np.array_equal(medium.pixel_values(), shown.pixel_values())
