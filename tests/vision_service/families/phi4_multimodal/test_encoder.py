"""Pixels and features are those of transformers, for every shape that a config can give."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.phi4_multimodal.configuration_phi4_multimodal import Phi4MultimodalConfig

from serving.bundle_error import BundleError
from tests.pictures import noise, png
from tests.vision_service.conftest import LIMITS, error
from tests.vision_service.families.phi4_multimodal.conftest import Made, make
from tests.vision_service.operators.here import needs_operators
from vision_service.families.phi4_multimodal.cost import encoder_cost
from vision_service.families.phi4_multimodal.crops import Crops
from vision_service.families.phi4_multimodal.encoder import Encoder
from vision_service.families.phi4_multimodal.preprocess import Picture, Preprocessor
from vision_service.media import Grid, Options, PreparedMedium, WorkCancelledError

CPU = torch.device("cpu")

SIZES = [
    *((1, 1), (56, 56), (57, 55), (112, 168), (100, 60), (60, 100), (70, 30), (45, 28)),
    *((20, 56), (13, 56), (300, 60), (60, 300), (640, 480), (500, 20), (83, 111), (140, 141)),
]
"""One crop and several, whole and with odd paddings, tiny, tall and wide."""

SHAPES: dict[str, dict[str, Any]] = {
    "odd crops": {"image_size": 42, "crop_size": 42},
    "odd crops of five": {"image_size": 70, "crop_size": 70},
    "positions of larger images": {"image_size": 112},
    "positions of smaller images": {"image_size": 28},
    "no whole patches": {"crop_size": 61, "image_size": 61},
    "heads": {"num_attention_heads": 3, "hidden_size": 36, "intermediate_size": 61},
    "one layer": {"num_hidden_layers": 2},
    "the last layer": {"feature_layer": -1},
    "an early layer": {"feature_layer": -4},
    "counted from the front": {"feature_layer": 2},
    "exact GELU": {"hidden_act": "gelu"},
    "patches of eight": {"patch_size": 8, "crop_size": 48, "image_size": 48},
    "one crop": {"dynamic_hd": 1},
    "many crops": {"dynamic_hd": 36},
    "wide": {"hidden": 64},
}


def _prepared(made: Made, sizes: list[tuple[int, int]]) -> tuple[list[Picture], list[Any]]:
    """What the service and what transformers make of noise of these sizes that both take."""
    preprocessor = Preprocessor(made.bundle, LIMITS)
    media, shown = [], []
    for size in sizes:
        try:
            one = made.processor(images=[noise(*size)], return_tensors="pt")
        except ValueError:
            with pytest.raises(Exception, match="no side may have less than 10"):
                preprocessor.prepare("image", png(noise(*size)), Options())
            continue
        medium = preprocessor.prepare("image", png(noise(*size)), Options())
        assert isinstance(medium, Picture)
        media.append(medium)
        shown.append(one)
    return media, shown


def _patches(pixels: torch.Tensor, crops: Crops, patch: int) -> np.ndarray:
    """The patches of the processor's crops that the encoder gets."""

    def cut(one: torch.Tensor, height: int, width: int) -> np.ndarray:
        taken = one[:, : height * patch, : width * patch].reshape(3, height, patch, width, patch)
        return taken.permute(1, 3, 0, 2, 4).reshape(height * width, -1).numpy()

    tiles = [crops.overview, *(tile for row in crops.tiles for tile in row)]
    return np.concatenate([cut(one, tile.height, tile.width) for one, tile in zip(pixels, tiles, strict=True)])


def _check(made: Made, sizes: list[tuple[int, int]]) -> None:
    media, shown = _prepared(made, sizes)
    assert len(media) > len(sizes) // 2
    encoder = Encoder.load(made.bundle.vision_dir, device=CPU, dtype=torch.float32)
    preprocessor = Preprocessor(made.bundle, LIMITS)
    patch = made.bundle.vision.patch_size
    for medium, one, got in zip(media, shown, encoder.encode(media), strict=True):
        (expected,) = made.features(one)
        assert np.array_equal(medium.pixel_values(), _patches(one["image_pixel_values"][0], medium.crops, patch))
        assert got.shape == expected.shape == (preprocessor.token_count(medium.grid), encoder.feature_width)
        assert error(got, expected) <= 2e-5


def test_pixels_and_features_equal_transformers(phi4: Made) -> None:
    """Every pixel value bit for bit, and features to 2e-5: of images packed in one pass."""
    _check(phi4, SIZES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_equal_transformers(name: str, tmp_path: Path) -> None:
    """Crops, positions, layers and heads of other sizes, on whole and padded crops."""
    _check(make(tmp_path / "bundle", **SHAPES[name]), [(61, 56), (57, 55), (130, 90), (83, 111), (640, 480), (28, 300)])


def test_a_batch_of_transformers_equals_ours(phi4: Made) -> None:
    """Transformers pads images of one call to the same number of crops; ours are not padded."""
    sizes = [(100, 60), (56, 40), (60, 300)]
    (shown,) = [phi4.processor(images=[noise(*size) for size in sizes], return_tensors="pt")]
    media, _ = _prepared(phi4, sizes)
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    for got, expected in zip(encoder.encode(media), phi4.features(shown), strict=True):
        assert error(got, expected) <= 2e-5


@pytest.mark.parametrize("wrong", ["no mask", "no separators", "all layers", "causal"])
def test_another_computation_is_noticed(wrong: str, phi4: Made, tmp_path: Path) -> None:
    """Negative controls: each of them changes the features far beyond the tolerance."""
    (medium,), (shown,) = _prepared(phi4, [(112, 100)] if wrong == "causal" else [(100, 60)])
    other = make(tmp_path / "bundle", feature_layer=-1) if wrong == "all layers" else phi4
    with torch.no_grad():
        model = copy.deepcopy(other.model)
        if wrong == "no separators":
            model.sub_img_feature_extensor.zero_()
            model.global_img_feature_extensor.zero_()
        if wrong == "causal":  # what transformers 5.23 computes with `sdpa` where no crop has padding
            model.img_processor.set_attn_implementation("sdpa")
        seen = dataclasses.replace(other, model=model)
        (expected,) = seen.features(shown, masked=wrong != "no mask")
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    (got,) = encoder.encode([medium])
    if wrong == "no mask":  # it has tokens for the padding, too; the overview is computed from the same pixels
        expected = expected[-len(got) :]
        assert len(seen.features(shown, masked=False)[0]) > len(got)
    assert error(got, expected) > 1e-2


def test_masks_change_features_of_whole_tokens_only_within_their_crop(phi4: Made) -> None:
    """The overview does not depend on the mask of the crops: its rows are the same with and without."""
    (medium,), (shown,) = _prepared(phi4, [(100, 60)])
    (masked,), (whole,) = (phi4.features(shown, masked=masked) for masked in (True, False))
    edge = 2 * 3
    assert error(masked[-edge:], whole[-edge:]) <= 2e-5
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    assert error(encoder.encode([medium])[0][-edge:], masked[-edge:]) <= 2e-5


def test_cancelling_between_layers(phi4: Made) -> None:
    """The next layer is not begun, and progress is told after each: three layers are used of four."""
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    media, _ = _prepared(phi4, [(100, 60)])
    shares: list[float] = []
    with pytest.raises(WorkCancelledError):
        encoder.encode(media, lambda: len(shares) == 2, shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3])


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_a_blank_image_has_as_many_tokens(side: int, phi4: Made) -> None:
    """For warm-up and for measuring: side x side tokens of crops, in whole crops and a rest."""
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    blank = encoder.blank(side)
    assert blank.grid == (1, 2 * side, 2 * side)
    (features,) = encoder.encode([blank])
    assert features.shape == (side * (side + 1) + 1 + 2 * 3, encoder.feature_width)
    assert features.isfinite().all()


@needs_operators
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.04), (torch.int8, 0.08)])
def test_smaller_types(dtype: torch.dtype, tolerance: float, phi4: Made) -> None:
    """With our own operators: close to float32, and not equal to it."""
    media, _ = _prepared(phi4, [(100, 60), (112, 168), (83, 111)])
    exact = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32).encode(media)
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=dtype)
    assert encoder.own_attention
    assert encoder.dtype is dtype
    for got, expected in zip(encoder.encode(media), exact, strict=True):
        assert 1e-4 < error(got, expected) <= tolerance


def test_unused_tensors_are_not_read(phi4: Made, tmp_path: Path) -> None:
    """A file without the last layer and the head gives the same features; one without a needed tensor is refused."""
    media, _ = _prepared(phi4, [(100, 60)])
    expected = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32).encode(media)[0]
    folder = tmp_path / "vision"
    shutil.copytree(phi4.bundle.vision_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    unused = ("img_processor.head.", "img_processor.post_layernorm.", "img_processor.encoder.layers.3.")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors")
    assert torch.equal(Encoder.load(folder, device=CPU, dtype=torch.float32).encode(media)[0], expected)
    more = {**kept, "other": torch.ones(1)}
    del kept["img_projection_up.bias"]
    for changed, named in ((kept, "img_projection_up.bias"), (more, "other")):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(BundleError, match=f'"{named}"'):
            Encoder.load(folder, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_layer": 0}, "feature_layer is 0"),
        ({"feature_layer": -6}, "feature_layer is -6"),
        ({"feature_layer": 5}, "feature_layer is 5"),
        ({"crop_size": 42}, "crops of 42 pixels have an odd number of patches"),
        ({"hidden_act": "relu"}, "hidden_act is relu"),
        ({"patch_size": 30}, "a crop must be square and have 2 x 2 patches"),
    ],
)
def test_configs_that_are_refused(changes: dict[str, Any], message: str, phi4: Made, tmp_path: Path) -> None:
    """With the setting in the sentence."""
    folder = tmp_path / "vision"
    shutil.copytree(phi4.bundle.vision_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match=message):
        Encoder.load(folder, device=CPU, dtype=torch.float32)


def test_the_cost_grows_with_the_crops() -> None:
    """Attention is within crops, so a patch costs the same in any image; the overview comes on top."""
    config = Phi4MultimodalConfig()
    cost = encoder_cost(config, torch.float32)
    assert cost.medium(Grid(1, 64, 64)) - cost.medium(Grid(1, 32, 64)) == pytest.approx(
        cost.medium(Grid(1, 32, 64)) - cost.medium(Grid(1, 0, 0))
    )
    assert cost.medium(Grid(1, 32, 32)) == pytest.approx(2 * cost.medium(Grid(1, 0, 0)))
    for patches in (0, 1024, 5000):
        assert cost.largest_frame(cost.frame(patches) * 1.000001) == patches
    assert cost.largest_frame(0.0) == 0


def test_the_medium_of_another_family_is_refused(phi4: Made) -> None:
    """It has no overview."""
    encoder = Encoder.load(phi4.bundle.vision_dir, device=CPU, dtype=torch.float32)
    plain = PreparedMedium(
        "image", Grid(1, 2, 2), np.zeros((4, 3, 1, 14, 14), np.uint8), np.zeros((3, 256), np.float32)
    )
    with pytest.raises(TypeError, match="another family"):
        encoder.encode([plain])
