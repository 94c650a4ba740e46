"""The encoder's features are those of transformers' whole model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from serving.bundle import Bundle, BundleError
from tests import pictures
from tests.vision_service.clips import noises
from tests.vision_service.conftest import Transformers, error
from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor
from vision_service.families.qwen3_vl.tower import Tower
from vision_service.media import Options, PreparedMedium, WorkCancelledError
from vision_service.operators import Operators
from vision_service.servicer import feature_bytes

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def media(preprocessor: Preprocessor) -> list[PreparedMedium]:
    """Images of several shapes and a video between them."""
    sizes = [(64, 64), (160, 96), (40, 400), (300, 60), (128, 128)]
    images = [preprocessor.prepare("image", pictures.png(pictures.noise(*size)), Options()) for size in sizes]
    video = preprocessor.prepare("video", pictures.video(noises(11), 5), Options())
    return [*images[:3], video, *images[3:]]


def by_transformers(reference: Transformers, medium: PreparedMedium) -> torch.Tensor:
    """The merged feature and the DeepStack features of one medium, by the path that its kind takes in the model."""
    pixels, grid = torch.from_numpy(medium.pixel_values()), torch.tensor([medium.grid])
    model = reference.model.model
    run = model.get_image_features if medium.kind == "image" else model.get_video_features
    with torch.no_grad():
        output = run(pixels, grid)
    merged = torch.cat(list(output.pooler_output)) if isinstance(output.pooler_output, tuple) else output.pooler_output
    levels = [torch.cat(list(level)) if isinstance(level, tuple) else level for level in output.deepstack_features]
    return torch.cat([merged, *levels], dim=-1)


def test_features_equal_transformers(encoder: Encoder, reference: Transformers, media: list[PreparedMedium]) -> None:
    """Images and a video packed in one forward give what each gives alone in transformers, to 1e-5."""
    features = encoder.encode(media)
    for medium, got in zip(media, features, strict=True):
        expected = by_transformers(reference, medium)
        assert got.shape == (medium.grid.patches // 4, encoder.feature_width)
        assert expected.abs().max() > 0.5  # features that are nearly nothing would agree with anything
        assert error(got, expected) <= 1e-5


def test_packed_equals_alone(encoder: Encoder, media: list[PreparedMedium]) -> None:
    """A medium's features do not depend on what it is packed with, nor on its place."""
    packed = encoder.encode(media[::-1])[::-1]
    for medium, got in zip(media, packed, strict=True):
        assert error(got, encoder.encode([medium])[0]) <= 1e-5


def test_levels_differ(encoder: Encoder, media: list[PreparedMedium]) -> None:
    """The three maps of a row are three different maps: exchanging two would be seen."""
    row = encoder.encode(media[:1])[0]
    maps = row.split(encoder.feature_width // 3, dim=-1)
    assert min((maps[a] - maps[b]).abs().max() for a, b in ((0, 1), (1, 2), (0, 2))) > 0.5


def test_memory_of_a_batch_is_not_shared(encoder: Encoder, media: list[PreparedMedium]) -> None:
    """Each medium's features own their memory: one that is read slowly keeps no other alive."""
    features = encoder.encode(media)
    assert all(one.untyped_storage().nbytes() == one.nbytes for one in features)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_wire_types(
    bundle: Bundle, encoder: Encoder, media: list[PreparedMedium], dtype: torch.dtype, tolerance: float
) -> None:
    """The halves are the float32 features, rounded; their bytes are little-endian and in rows."""
    half = Encoder.load(bundle.vision_dir, device=CPU, dtype=torch.float32, out_dtype=dtype)
    expected, got = encoder.encode(media[:1])[0], half.encode(media[:1])[0]
    assert got.dtype is dtype
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=1e-3)
    data = feature_bytes(got)
    assert data.nbytes == got.numel() * 2
    if dtype is torch.float16:
        assert np.array_equal(np.frombuffer(data, "<f2").reshape(got.shape), got.numpy())


def test_features_beyond_float16_stay_finite(bundle: Bundle, media: list[PreparedMedium], tmp_path: Path) -> None:
    """A feature that float16 cannot hold is sent as its largest number and not as infinity."""
    shutil.copytree(bundle.vision_dir, tmp_path / "vision")
    weights = load_file(bundle.vision_dir / "model.safetensors")
    weights["merger.linear_fc2.bias"] = weights["merger.linear_fc2.bias"] + 1e6
    save_file(weights, tmp_path / "vision" / "model.safetensors")
    half = Encoder.load(tmp_path / "vision", device=CPU, dtype=torch.float32, out_dtype=torch.float16)
    assert torch.isfinite(half.encode(media[:1])[0]).all()


def test_cancelling_stops_between_layers(encoder: Encoder, media: list[PreparedMedium]) -> None:
    """Once nobody wants the features the forward ends at the next layer, and the encoder goes on with other work."""
    asked: list[None] = []

    def cancelled() -> bool:
        asked.append(None)
        return len(asked) == 2

    with pytest.raises(WorkCancelledError):
        encoder.encode(media[:1], cancelled)
    assert len(asked) == 2
    assert len(encoder.encode(media[:1])) == 1


def test_weights_are_held_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tower computes with is all there is: the model that it was made of has no large weights left."""
    models: list[Qwen3VLVisionModel] = []
    make = Tower.__init__

    def watched(self: Tower, model: Qwen3VLVisionModel, *given: Operators | None, **more: bool) -> None:
        models.append(model)
        make(self, model, *given, **more)

    monkeypatch.setattr(Tower, "__init__", watched)
    loaded = Encoder.load(bundle.vision_dir, device=CPU, dtype=torch.float32)
    (model,) = models
    left = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert left == {"patch_embed.proj.weight", "pos_embed.weight"}
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in (*model.parameters(), *model.buffers()))
    assert loaded.device == CPU


def test_blank_is_encoded(encoder: Encoder) -> None:
    """The picture for warming up is one token."""
    assert encoder.encode([encoder.blank()])[0].shape == (1, encoder.feature_width)


@pytest.mark.parametrize("how", ["missing weight", "other config", "no weights", "damaged weights", "no config"])
def test_damaged_encoders_are_refused(how: str, bundle: Bundle, tmp_path: Path) -> None:
    """An encoder that does not fit together is refused in one sentence."""
    folder = tmp_path / "vision"
    shutil.copytree(bundle.vision_dir, folder)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "missing weight":
        tensors = load_file(weights)
        del tensors["merger.norm.weight"]
        save_file(tensors, weights)
    elif how == "other config":
        raw = json.loads(config.read_text())
        raw["vision_config"]["intermediate_size"] += 64
        config.write_text(json.dumps(raw))
    elif how == "no weights":
        weights.unlink()
    elif how == "damaged weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        config.write_text("{}")
    with pytest.raises(BundleError) as caught:
        Encoder.load(folder, device=CPU, dtype=torch.float32)
    assert "\n" not in str(caught.value)
    assert "export the bundle again" in str(caught.value)


def test_unknown_activation_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """An encoder whose activation is not computed here is refused in one sentence that names it."""
    shutil.copytree(bundle.vision_dir, tmp_path / "vision")
    config = tmp_path / "vision" / "config.json"
    raw = json.loads(config.read_text())
    raw["vision_config"]["hidden_act"] = "relu"
    config.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="hidden_act is relu"):
        Encoder.load(tmp_path / "vision", device=CPU, dtype=torch.float32)
