"""The float32 decoder, run by onnxruntime-genai, equals transformers."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import exporter
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint
from tests.exporter.families.qwen3_vl.reference import STEPS, Exported, Prompt, Reference, greedy, last_logits, unused

TOLERANCE = 1e-4
# Grids in patches: an image's (h, w), a video's (t, h, w).
PROMPTS: dict[str, dict[str, Any]] = {
    "text_alone": {},
    "one_image": {"images": [(4, 6)]},
    "two_images_of_different_sizes": {"images": [(4, 6), (8, 2)]},
    "tall_and_wide": {"images": [(12, 2), (2, 10)]},
    "video": {"video": (3, 4, 6)},
    "image_and_video": {"images": [(2, 4)], "video": (2, 4, 4)},
}


@dataclass(frozen=True)
class Pair:
    """A checkpoint in transformers beside its float32 bundle, whose graph also tells the positions it got."""

    reference: Reference
    bundle: Bundle
    decoder: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A small checkpoint."""
    root = tmp_path_factory.mktemp("parity")
    source = make_checkpoint(root / "checkpoint")
    bundle = exporter.export(source, root / "bundle", precision="fp32")
    decoder = shutil.copytree(bundle.decoder_dir, root / "spy")
    _tell_positions(decoder / "fp32" / "model.onnx")
    yield Pair(Reference(source), bundle, decoder)
    shutil.rmtree(root)


def _tell_positions(path: Path) -> None:
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(helper.make_node("Identity", ["position_ids"], ["seen_positions"]))
    shape: list[str | int | None] = [3, "batch_size", "sequence_length"]
    model.graph.output.append(helper.make_tensor_value_info("seen_positions", TensorProto.INT64, shape))
    onnx.save(model, path)


def _prompt(pair: Pair, case: str) -> Prompt:
    return pair.reference.prompt("What is in the picture?", **PROMPTS[case])


@pytest.mark.parametrize("case", PROMPTS)
def test_logits_positions_and_greedy_tokens(pair: Pair, case: str) -> None:
    """Positions are exactly transformers', logits within 1e-4, and 24 greedy tokens the same."""
    prompt = _prompt(pair, case)
    expected = pair.reference.greedy(prompt)
    generator = Exported(pair.decoder, end=unused(expected)).start(prompt, pair.reference.features(prompt))
    positions = np.asarray(generator.get_output("seen_positions"))[:, 0]
    np.testing.assert_array_equal(positions, pair.reference.positions(prompt))
    np.testing.assert_allclose(last_logits(generator), pair.reference.logits(prompt), atol=TOLERANCE, rtol=0)
    assert greedy(generator) == expected
    assert len(expected) == STEPS
    # The random model is a fair judge: it does not repeat one token, whatever it is shown.
    assert len(set(expected)) > STEPS // 4


@pytest.mark.parametrize("case", ["one_image", "video"])
def test_negative_controls(pair: Pair, case: str) -> None:
    """With DeepStack zeroed, or the merged features zeroed, the same check fails by far."""
    prompt = _prompt(pair, case)
    features = pair.reference.features(prompt)
    expected = pair.reference.logits(prompt)
    hidden = pair.bundle.text.hidden_size
    exported = Exported(pair.decoder)
    for level in range(1 + len(pair.bundle.vision.deepstack_visual_indexes)):
        damaged = features.copy()
        damaged[:, level * hidden : (level + 1) * hidden] = 0
        error = np.abs(last_logits(exported.start(prompt, damaged)) - expected).max()
        assert error > 100 * TOLERANCE, f"chunk {level} of the features does not reach the logits"


def test_swapped_images_are_noticed(pair: Pair) -> None:
    """Features of two equal grids in the wrong order fail the check."""
    prompt = pair.reference.prompt("Compare them.", images=[(4, 4), (4, 4)])
    features = pair.reference.features(prompt)
    swapped = np.concatenate([features[4:], features[:4]])
    error = np.abs(last_logits(Exported(pair.decoder).start(prompt, swapped)) - pair.reference.logits(prompt)).max()
    assert error > 100 * TOLERANCE


def test_the_mrope_section_reaches_the_graph(tmp_path: Path) -> None:
    """The same weights with another split of the head give other logits in both, and again the same ones."""
    logits = {}
    for name, section in (("base", (6, 5, 5)), ("other", (12, 2, 2))):
        source = make_checkpoint(tmp_path / name, mrope_section=section)
        bundle = exporter.export(source, tmp_path / f"{name}-bundle", precision="fp32")
        reference = Reference(source)
        prompt = reference.prompt("What is in the picture?", images=[(12, 12)])
        logits[name] = last_logits(Exported(bundle.decoder_dir).start(prompt, reference.features(prompt)))
        np.testing.assert_allclose(logits[name], reference.logits(prompt), atol=TOLERANCE, rtol=0)
    assert np.abs(logits["base"] - logits["other"]).max() > 100 * TOLERANCE


# As the published configs have it, with a length so small that the prompts exceed it.
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("more", "context", "dialect"),
    [({}, 4096, "v4"), ({"mscale": 1.5, "mscale_all_dim": 0.5, "beta_fast": 4.0, "truncate": False}, 64, "v5")],
)
def test_yarn(tmp_path: Path, more: dict[str, Any], context: int, dialect: Any) -> None:
    """Beyond the original length logits are within 1e-4, greedy tokens the same, and the context is the longer one."""
    scaling = {**YARN, **more}
    source = make_checkpoint(tmp_path / "yarn", rope_scaling=scaling, context=context, dialect=dialect)
    bundle = exporter.export(source, tmp_path / "bundle", precision="fp32")
    assert bundle.context_length == max(context, 256)
    reference = Reference(source)
    prompt = reference.prompt("What is in the picture? " * 3, images=[(12, 2), (4, 6)])
    assert reference.positions(prompt).max() > 2 * 32
    features, expected = reference.features(prompt), reference.greedy(prompt)
    generator = Exported(bundle.decoder_dir, end=unused(expected)).start(prompt, features)
    np.testing.assert_allclose(last_logits(generator), reference.logits(prompt), atol=TOLERANCE, rtol=0)
    assert greedy(generator) == expected
    # Negative control: the same weights without it give other logits.
    plain = exporter.export(make_checkpoint(tmp_path / "plain"), tmp_path / "plain-bundle", precision="fp32")
    error = np.abs(last_logits(Exported(plain.decoder_dir).start(prompt, features)) - reference.logits(prompt)).max()
    assert error > 100 * TOLERANCE


def test_a_placeholder_that_the_model_wrote_is_a_token(fp32_bundle: Bundle, checkpoint: Path) -> None:
    """Control ids in the answer, image placeholders among them, do not stop the generation."""
    reference = Reference(checkpoint)
    prompt = reference.prompt("Hello")
    generator = Exported(fp32_bundle.decoder_dir).start(prompt, reference.features(prompt))
    generator.append_tokens(np.array([[fp32_bundle.media_tokens.image]], np.int32))
    assert np.isfinite(last_logits(generator)).all()
