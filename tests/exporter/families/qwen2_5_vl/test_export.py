"""What is this family's own in a bundle: its description, its graph's rotation, biases, and files as published."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import exporter
from exporter import ExportError
from exporter.divergence import Asked, Graph, kl_divergence
from exporter.families.shared.smoothing import smooth_keys, smooth_layer
from serving.bundle import Bundle
from serving.families import Qwen25VLInfo
from tests.checkpoints import make_qwen2_5_vl
from tests.integration.conversations import CONVERSATIONS, to_messages
from tests.integration.whole import Laid, Whole
from tests.reference import Reference

TEXT = "model.language_model"
CONVERSATION = CONVERSATIONS["a video and an image"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base shape as the published models are stored."""
    return make_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl") / "checkpoint", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def exact(source: Path) -> Bundle:
    """Its fp32 bundle."""
    return exporter.export(source, source.parent / "fp32", precision="fp32")


@pytest.fixture(scope="module")
def laid(exact: Bundle) -> Laid:
    """A conversation with a video and an image."""
    return Whole(exact).lay_out(to_messages(CONVERSATION))


def _logits(graph: Graph, laid: Laid) -> np.ndarray[Any, np.dtype[np.float32]]:
    (logits,) = graph.led(Asked(laid.prompt, laid.features), [])
    return np.asarray(logits)


def test_the_bundle_tells_of_the_family(exact: Bundle) -> None:
    """Windows and rate of the encoder, features as wide as the language model, and the library's name of the family."""
    assert isinstance(exact.info, Qwen25VLInfo)
    vision = exact.info.vision
    assert (vision.window_size, vision.full_attention_layers, vision.tokens_per_second) == (112, (1, 3), 2)
    assert exact.feature_width == exact.text.hidden_size == 128
    assert exact.text.head_dim == 32
    config = json.loads((exact.decoder_dir / "genai_config.json").read_text())["model"]
    assert (config["type"], config["vision"]["patch_size"]) == ("qwen2_5_vl", 14)


def test_sections_are_in_order_and_not_interleaved(source: Path, exact: Bundle, laid: Laid, tmp_path: Path) -> None:
    """The graph gives transformers' logits; with interleaved sections, which Qwen3-VL has, it would not."""
    reference = Reference(source)
    expected = reference.logits(reference.inputs(CONVERSATION)).numpy()
    np.testing.assert_allclose(_logits(Graph(exact, "fp32", length=512), laid), expected, atol=1e-4, rtol=0)
    other = Bundle.open(shutil.copytree(exact.root, tmp_path / "interleaved"))
    path = other.graph_path("fp32")
    model = onnx.load(path, load_external_data=False)
    rotations = [node for node in model.graph.node if node.op_type == "MRotaryEmbedding"]
    assert len(rotations) == 2 * exact.text.num_hidden_layers
    for node in rotations:
        (layout,) = (attribute for attribute in node.attribute if attribute.name == "mrope_layout")
        assert layout.i == 0
        layout.i = 1
    onnx.save(model, path)
    assert np.abs(_logits(Graph(other, "fp32", length=512), laid) - expected).max() > 100 * 1e-4


def test_quantized_graphs_stay_near_float32(source: Path, exact: Bundle, laid: Laid, tmp_path: Path) -> None:
    """Calibrated and smoothed, with INT8 closer than INT4; without the biases nothing would be near."""
    rounded = exporter.export(source, tmp_path / "int4")
    truth = _logits(Graph(exact, "fp32", length=512), laid)[None]
    int4, int8 = (
        kl_divergence(truth, _logits(Graph(rounded, name, length=512), laid)[None]).item() for name in ("int4", "int8")
    )
    assert int8 < int4 < 1
    assert int8 < 0.05
    for name in ("int4", "int8"):
        graph = onnx.load(rounded.graph_path(name), load_external_data=False).graph
        biases = [node for node in graph.node if node.op_type == "Add" and "_proj" in node.name]
        assert len(biases) == 3 * rounded.text.num_hidden_layers, name


def test_files_as_published_give_the_same_bundle(source: Path, exact: Bundle, tmp_path: Path) -> None:
    """Flat config, transformers 4's names of tensors, bounds beside `size`, the template in tokenizer_config.json."""
    published = make_qwen2_5_vl(tmp_path / "published", dtype=torch.bfloat16, dialect="published")
    bundle = exporter.export(published, tmp_path / "bundle", precision="fp32")
    assert bundle.info.model_dump(exclude={"encoder_fingerprint"}) == exact.info.model_dump(
        exclude={"encoder_fingerprint"}
    )
    same = [
        "decoder/fp32/model.onnx.data",
        "decoder/embedding.onnx.data",
        "decoder/chat_template.jinja",
        "vision/model.safetensors",
    ]
    assert [name for name in same if bundle.files[name] != exact.files[name]] == []
    video = json.loads((bundle.vision_dir / "video_preprocessor_config.json").read_text())
    assert video["size"] == {"longest_edge": 768 * 28 * 28, "shortest_edge": 128 * 28 * 28}
    assert (video["fps"], video["patch_size"], video["image_mean"][0]) == (2, 14, 0.48145466)
    prefixed = tmp_path / "prefixed"
    shutil.copytree(published, prefixed)
    _rename(prefixed, lambda name: f"base_model.model.{name}")
    again = exporter.export(prefixed, tmp_path / "again", precision="fp32")
    assert again.files["decoder/fp32/model.onnx.data"] == exact.files["decoder/fp32/model.onnx.data"]


def _rename(root: Path, rename: Callable[[str], str]) -> None:
    tensors = load_file(root / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in tensors.items()}, root / "model.safetensors")


def test_smoothing_changes_no_bit(source: Path) -> None:
    """Keys with a large bias give their magnitude to the queries of their group; biases follow their rows."""
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))
    layers = model.model.language_model.layers
    with torch.no_grad():
        for layer in layers:
            layer.self_attn.k_proj.bias[[3, 19, 32 + 5]] = 200.0
            layer.self_attn.v_proj.weight[7] *= 64
            layer.self_attn.v_proj.bias[7] *= 64
            layer.self_attn.o_proj.weight[:, [7, 32 + 7]] /= 64
        before = model(input_ids=ids).logits
        for layer in layers:
            smooth_layer(layer)
            smooth_keys(layer)
            attention = layer.self_attn
            assert attention.k_proj.bias.abs().max() < 10
            assert attention.v_proj.bias[7].abs() < 1
            # Channels 3 and 19 are one pair of the first head of keys, which two heads of queries read.
            rows = attention.q_proj.weight.square().sum(dim=1).sqrt().view(4, 32)
            assert (rows[:2, [3, 19]] > 30 * rows[:2].median()).all()
            assert (rows[2:, [5, 21]] > 30 * rows[2:].median()).all()
        assert torch.equal(model(input_ids=ids).logits, before)
        # Negative control: half of a pair alone changes the function.
        layers[1].self_attn.k_proj.weight[3] /= 2
        layers[1].self_attn.k_proj.bias[3] /= 2
        layers[1].self_attn.q_proj.weight[[3, 32 + 3]] *= 2
        layers[1].self_attn.q_proj.bias[[3, 32 + 3]] *= 2
        assert (model(input_ids=ids).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda c: c["text_config"].update(
                use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None
            ),
            "use_sliding_window",
        ),
        (lambda c: c["vision_config"].update(window_size=27), "window_size 27 is less than a token's 28"),
        (lambda c: c["vision_config"].update(tokens_per_second=0), "not a valid Qwen2.5-VL config"),
        (lambda c: c["vision_config"].update(hidden_size="x"), "not a valid Qwen2.5-VL config"),
        (lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[4, 4, 4]), "mrope_section"),
        (lambda c: c["text_config"]["rope_parameters"].update(rope_type="linear", factor=2.0), "'linear' rotary"),
    ],
)
def test_configs_that_are_refused(
    source: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    """One sentence each, before anything is written."""
    broken = shutil.copytree(source, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    change(config)
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=says):
        exporter.export(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize(
    ("name", "in_memory"),
    [
        ("model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.up_proj.weight"),
        ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight"),
    ],
)
def test_a_missing_tensor_is_called_as_in_the_file(
    source: Path, tmp_path: Path, name: str, in_memory: str, published: bool
) -> None:
    """By its published name, or by that of transformers 5's model where the file has such names."""
    checkpoint = shutil.copytree(source, tmp_path / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors[name]
    save_file(tensors, checkpoint / "model.safetensors")
    if not published:
        _rename(checkpoint, lambda n: f"model.{n}" if n.startswith("visual.") else n.replace("model.", f"{TEXT}.", 1))
        name, in_memory = in_memory, name
    with pytest.raises(ExportError, match=rf"lacks {re.escape(name)}, .*to Qwen2\.5-VL's published") as caught:
        exporter.export(checkpoint, tmp_path / "bundle", precision="fp32")
    assert f" {in_memory}" not in str(caught.value)
