"""A checkpoint is read the same whichever transformers wrote it, and however its files are cut."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import exporter
from exporter.families.qwen3_vl.variant import VARIANT
from exporter.families.shared.checkpoint import Checkpoint
from serving.bundle import Bundle
from tests.checkpoints import CHAT_TEMPLATE, make_checkpoint, to_v4_dialect


def _graph_files(bundle: Bundle) -> dict[str, str]:
    names = ("model.onnx", "model.onnx.data", "embedding.onnx", "embedding.onnx.data", "genai_config.json")
    return {name: info.sha256 for name, info in bundle.files.items() if name.endswith(names)}


def test_v4_config_gives_identical_bundles(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` give byte for byte the graphs that `rope_parameters` gives."""
    source = shutil.copytree(checkpoint, tmp_path / "old")
    to_v4_dialect(source)
    config = json.loads((source / "config.json").read_text())
    assert "rope_scaling" in config["text_config"]
    assert "rope_parameters" not in config["text_config"]
    bundle = exporter.export(source, tmp_path / "bundle")
    assert _graph_files(bundle) == _graph_files(int4_bundle)
    assert bundle.encoder_fingerprint == int4_bundle.encoder_fingerprint
    assert bundle.text == int4_bundle.text
    written = json.loads((bundle.vision_dir / "config.json").read_text())
    assert written["text_config"]["rope_parameters"]["rope_theta"] == config["text_config"]["rope_theta"]


def test_theta_of_the_old_dialect_is_used(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """Another theta makes another graph: it is read, not assumed."""
    source = shutil.copytree(checkpoint, tmp_path / "old")
    to_v4_dialect(source)
    config = json.loads((source / "config.json").read_text())
    config["text_config"]["rope_theta"] *= 2
    (source / "config.json").write_text(json.dumps(config))
    assert _graph_files(exporter.export(source, tmp_path / "bundle")) != _graph_files(int4_bundle)


def test_shards_give_identical_bundles(int4_bundle: Bundle, tmp_path: Path) -> None:
    """A checkpoint in several files is the same checkpoint."""
    source = make_checkpoint(tmp_path / "sharded", dtype=torch.bfloat16, shard_size="200KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    bundle = exporter.export(source, tmp_path / "bundle")
    assert _graph_files(bundle) == _graph_files(int4_bundle)
    assert bundle.encoder_fingerprint == int4_bundle.encoder_fingerprint


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", "named"])
def test_chat_template_is_found(checkpoint: Path, tmp_path: Path, place: str) -> None:
    """The template comes along from each of the places where checkpoints keep it."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / "chat_template.jinja").unlink()
    if place == "chat_template.json":
        (source / place).write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    else:
        config = json.loads((source / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": CHAT_TEMPLATE}]
        config["chat_template"] = named if place == "named" else CHAT_TEMPLATE
        (source / "tokenizer_config.json").write_text(json.dumps(config))
    bundle = exporter.export(source, tmp_path / "bundle")
    assert (bundle.decoder_dir / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_processor_settings_in_one_file(checkpoint: Path, tmp_path: Path) -> None:
    """Both media's settings are found in processor_config.json too, where transformers 5 saves them."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    image = json.loads((source / "preprocessor_config.json").read_text())
    video = json.loads((source / "video_preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").unlink()
    (source / "video_preprocessor_config.json").unlink()
    (source / "processor_config.json").write_text(json.dumps({"image_processor": image, "video_processor": video}))
    bundle = exporter.export(source, tmp_path / "bundle")
    assert json.loads((bundle.vision_dir / "preprocessor_config.json").read_text()) == image
    assert json.loads((bundle.vision_dir / "video_preprocessor_config.json").read_text()) == video


def test_video_settings_are_derived(checkpoint: Path, tmp_path: Path) -> None:
    """Without video settings the published limits hold, with the image's patches and normalization."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / "video_preprocessor_config.json").unlink()
    bundle = exporter.export(source, tmp_path / "bundle")
    video = json.loads((bundle.vision_dir / "video_preprocessor_config.json").read_text())
    assert video["size"] == {"longest_edge": 25_165_824, "shortest_edge": 4_096}
    assert (video["fps"], video["min_frames"], video["max_frames"]) == (2, 4, 768)
    assert video["image_mean"] == [0.5, 0.5, 0.5]
    assert (video["patch_size"], video["merge_size"], video["temporal_patch_size"]) == (16, 2, 2)


def test_end_of_answer_without_generation_config(checkpoint: Path, tmp_path: Path) -> None:
    """Without generation_config.json the config's own eos token ends an answer."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    (source / "generation_config.json").unlink()
    bundle = exporter.export(source, tmp_path / "bundle")
    config = json.loads((source / "config.json").read_text())
    assert bundle.tokens.eos == (config["text_config"]["eos_token_id"],)
    assert (bundle.decoder_dir / "generation_config.json").is_file()


def test_tying_said_in_the_text_part_alone(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """A config that ties the embeddings in its language model's part only is of a tied model."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    assert config["text_config"]["tie_word_embeddings"]
    del config["tie_word_embeddings"]
    (source / "config.json").write_text(json.dumps(config))
    bundle = exporter.export(source, tmp_path / "bundle")
    assert bundle.text.tie_word_embeddings
    assert _graph_files(bundle) == _graph_files(int4_bundle)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.base_model.model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name.removeprefix('model.')}",
        lambda name: f"model.{name}",
    ],
    ids=["module", "peft", "both", "inner model", "inner model in a module", "model twice"],
)
def test_prefixes_of_trainers(checkpoint: Path, tmp_path: Path, renamed: Callable[[str], str]) -> None:
    """What a trainer put before the names is taken away; a tensor of its own beside the model does no harm."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    state = load_file(source / "model.safetensors")
    odd = {renamed(name): tensor for name, tensor in state.items()} | {"value_head.weight": torch.zeros(1)}
    save_file(odd, source / "model.safetensors")
    tensors = Checkpoint.open(source, VARIANT).tensors
    assert all(torch.equal(tensors[name].read(), tensor) for name, tensor in state.items())


def test_a_prefix_before_an_untied_head(tmp_path: Path) -> None:
    """The head is found beside the inner model, under the same prefix."""
    source = make_checkpoint(tmp_path / "source", tie=False)
    plain = exporter.export(source, tmp_path / "plain", phases=["int4"])
    state = load_file(source / "model.safetensors")
    save_file({f"module.{n.removeprefix('model.')}": t for n, t in state.items()}, source / "model.safetensors")
    assert _graph_files(exporter.export(source, tmp_path / "bundle", phases=["int4"])) == _graph_files(plain)


def test_no_quantization_said_outright(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """`"quantization_config": null` is no quantization."""
    source = shutil.copytree(checkpoint, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = config["text_config"]["quantization_config"] = None
    (source / "config.json").write_text(json.dumps(config))
    assert _graph_files(exporter.export(source, tmp_path / "bundle")) == _graph_files(int4_bundle)
