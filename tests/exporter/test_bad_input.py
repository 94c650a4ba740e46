"""Whatever is wrong, there is one sentence about it and nothing is written."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import exporter
from exporter import ExportError
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint

Damage = Callable[[Path], object]


def _refused(source: str | Path, out: Path, **options: Any) -> str:
    """Export what must be refused; returns the sentence."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(ExportError) as caught:
        exporter.export(source, out, **options)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert len(sentence) < 500
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else None) == before
    return sentence


def _edit(name: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(root: Path) -> None:
        value = json.loads((root / name).read_text())
        change(value)
        (root / name).write_text(json.dumps(value))

    return damage


def _remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def _truncate(root: Path) -> None:
    path = root / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _other(kind: str, architecture: str) -> Damage:
    return _edit("config.json", lambda c: c.update(model_type=kind, architectures=[architecture]))


def _only(*files: tuple[str, str]) -> Damage:
    """Nothing is there but these files."""

    def damage(root: Path) -> None:
        for path in root.iterdir():
            path.unlink()
        for name, content in files:
            (root / name).write_text(content)

    return damage


def _quantized(**said: Any) -> Damage:
    return _edit("config.json", lambda c: c.update(said))


def _renamed(new_name: Callable[[str], str], **more: torch.Tensor) -> Damage:
    def damage(root: Path) -> None:
        state = load_file(root / "model.safetensors")
        save_file({new_name(name): tensor for name, tensor in state.items()} | more, root / "model.safetensors")

    return damage


def _with_value(name: str, value: float) -> Damage:
    def damage(root: Path) -> None:
        state = load_file(root / "model.safetensors")
        state[name].view(-1)[-1] = value
        save_file(state, root / "model.safetensors")

    return damage


def _add_teacher(root: Path) -> None:
    state = load_file(root / "model.safetensors")
    teacher = {name.replace("student.", "teacher."): tensor.clone() for name, tensor in state.items()}
    save_file(state | teacher, root / "model.safetensors")


def _both(*damages: Damage) -> Damage:
    return lambda root: [damage(root) for damage in damages]


def _template(text: str) -> Damage:
    return lambda root: (root / "chat_template.jinja").write_text(text)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "qwen2_vl": (_other("qwen2_vl", "Qwen2VLForConditionalGeneration"), "Qwen2VLFor.*only dense Qwen3-VL"),
    "moe": (_other("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"), "Qwen3VLMoeFor.*only dense Qwen3-VL"),
    "text": (_other("llama", "LlamaForCausalLM"), "LlamaForCausalLM.*only dense Qwen3-VL"),
    "text_alone": (_other("qwen3", "Qwen3ForCausalLM"), "has a text_config"),
    "unnamed": (_edit("config.json", lambda c: (c.pop("model_type"), c.pop("architectures"))), "no known architecture"),
    "awq": (_quantized(quantization_config={"quant_method": "awq", "bits": 4}), "quantized with AWQ"),
    "gptq": (
        _edit("config.json", lambda c: c["text_config"].update(quantization_config={"quant_method": "gptq"})),
        "quantized with GPTQ",
    ),
    "bitsandbytes": (_quantized(quantization_config={"load_in_4bit": True}), "quantized with bitsandbytes"),
    "compressed": (
        _quantized(quantization_config={"quant_method": "compressed-tensors", "format": "float-quantized"}),
        "quantized with compressed-tensors",
    ),
    "mlx": (_quantized(quantization={"group_size": 64, "bits": 4}), "quantized with MLX"),
    "newer_mlx": (
        _quantized(quantization={"group_size": 64, "bits": 4}, quantization_config={"group_size": 64, "bits": 4}),
        "quantized with MLX",
    ),
    "gguf": (_only(("Qwen3VL-4B-Q4_K_M.gguf", "GGUF"), ("mmproj-F16.gguf", "GGUF")), "holds GGUF files"),
    "gguf_beside_config": (
        _both(_remove("model.safetensors"), lambda root: (root / "model.gguf").write_text("GGUF")),
        "holds GGUF files",
    ),
    "adapter": (
        _only(
            ("adapter_config.json", '{"base_model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}'),
            ("adapter_model.safetensors", ""),
        ),
        r"only an adapter \(LoRA\) of Qwen/Qwen3-VL-4B-Instruct: merge it",
    ),
    "adapter_beside_config": (
        _both(_remove("model.safetensors"), lambda root: (root / "adapter_model.safetensors").write_text("")),
        r"only an adapter \(LoRA\): merge it",
    ),
    "unmerged_adapter": (
        _renamed(lambda name: f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}"),
        r"not merged \(base_model\.model\..*q_proj\.base_layer",
    ),
    "two_models": (
        _both(_renamed(lambda name: f"student.{name}"), _add_teacher),
        "several models, with the prefixes 'student.' and 'teacher.'",
    ),
    "names_of_mlx": (
        _renamed(lambda name: name.replace("model.language_model.", "language_model.model.")),
        r"lacks model\.language_model\..*it has language_model\.model\.",
    ),
    "nan": (
        _with_value("model.language_model.layers.1.mlp.up_proj.weight", math.nan),
        r"layers\.1\.mlp\.up_proj.* NaN",
    ),
    "infinite": (_with_value("model.language_model.embed_tokens.weight", math.inf), r"embed_tokens.* infinite"),
    "nan_in_encoder": (_with_value("model.visual.merger.norm.bias", math.nan), r"visual\.merger\.norm\.bias .* NaN"),
    "one_edge": (
        _edit("preprocessor_config.json", lambda c: c.update(size={"longest_edge": 36864})),
        r"preprocessor_config\.json has size = \{'longest_edge': 36864\}",
    ),
    "resample": (_edit("preprocessor_config.json", lambda c: c.update(resample=2)), "has resample = 2, where only 3"),
    "video_patches": (
        _edit("video_preprocessor_config.json", lambda c: c.update(patch_size=14)),
        r"video_preprocessor_config\.json has patch_size = 14",
    ),
    "mean": (_edit("preprocessor_config.json", lambda c: c.update(image_mean="grey")), "cannot be served"),
    "template_syntax": (_template("{% for message in messages %}"), "does not render .*endfor"),
    "template_raises": (_template("{{ raise_exception('no pictures here') }}"), "does not render .*no pictures here"),
    "template_of_text": (
        _template("{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}\n{% endfor %}"),
        "does not render .*0 placeholders for 2 media",
    ),
    "bad_config": (_edit("config.json", lambda c: c["text_config"].update(hidden_size="wide")), "not a valid"),
    "json": (lambda root: (root / "config.json").write_text("{"), r"config\.json cannot be read"),
    "no_config": (_remove("config.json"), r"no config\.json"),
    "rope_type": (
        _edit("config.json", lambda c: c["text_config"]["rope_parameters"].update(rope_type="linear", factor=2.0)),
        "'linear' rotary embeddings.* the context is 4096 tokens",
    ),
    "yarn": (
        _edit("config.json", lambda c: c["text_config"]["rope_parameters"].update(rope_type="yarn")),
        r"not a valid .*factor",
    ),
    "mrope": (
        _edit("config.json", lambda c: c["text_config"]["rope_parameters"].update(mrope_section=[6, 5, 4])),
        "mrope_section",
    ),
    "widths": (_edit("config.json", lambda c: c["vision_config"].update(out_hidden_size=32)), "width 32"),
    "token": (_edit("config.json", lambda c: c.update(image_token_id=10**6)), "image_token_id"),
    "shape": (_edit("config.json", lambda c: c["text_config"].update(intermediate_size=96)), r"has shape \[128, 64\]"),
    "missing_tensor": (
        _edit("config.json", lambda c: c["text_config"].update(num_hidden_layers=5)),
        r"lacks model\.language_model\.layers\.4\..* and \d+ more tensors",
    ),
    "activation": (
        _edit("config.json", lambda c: c["text_config"].update(hidden_act="foo")),
        r"the activation 'foo' \(hidden_act\)",
    ),
    "encoder's activation": (
        _edit("config.json", lambda c: c["vision_config"].update(hidden_act="relu")),
        r"the activation 'relu' \(vision_config\.hidden_act\), and only gelu and gelu_pytorch_tanh are supported",
    ),
    "no_weights": (_remove("model.safetensors"), "has no weights"),
    "truncated": (_truncate, r"model\.safetensors is truncated"),
    "not_safetensors": (
        lambda root: (root / "model.safetensors").write_text("<html>not found</html>"),
        "not a readable safetensors",
    ),
    "no_tokenizer": (_remove("tokenizer.json"), r"no tokenizer\.json"),
    "bad_tokenizer": (lambda root: (root / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
    "no_tokenizer_config": (_remove("tokenizer_config.json"), r"no tokenizer_config\.json"),
    "no_template": (_remove("chat_template.jinja"), "no chat template"),
    "no_preprocessor": (_remove("preprocessor_config.json"), r"no preprocessor_config\.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_checkpoint(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Each damage is named."""
    damage, sentence = DAMAGES[name]
    source = shutil.copytree(checkpoint, tmp_path / "source")
    damage(source)
    assert re.search(sentence, _refused(source, tmp_path / "out"))


def test_missing_shard(tmp_path: Path) -> None:
    """A file that the index lists and that is not there is named."""
    source = make_checkpoint(tmp_path / "source", dtype=torch.bfloat16, shard_size="200KB")
    shard = sorted(source.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in _refused(source, tmp_path / "out")
    (source / "model.safetensors.index.json").write_text("[]")
    assert "index.json cannot be read" in _refused(source, tmp_path / "out")


def test_no_such_directory(tmp_path: Path) -> None:
    """A path that is not there, and a path to a file, are told apart."""
    assert "no directory" in _refused(tmp_path / "nothing", tmp_path / "out")
    assert "no directory" in _refused(str(tmp_path / "nothing"), tmp_path / "out")
    (tmp_path / "file").write_text("")
    assert "is a file" in _refused(tmp_path / "file", tmp_path / "out")


def test_a_weights_file_is_no_directory(tmp_path: Path) -> None:
    """A GGUF file is named as such."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "holds GGUF files" in _refused(tmp_path / "model.gguf", tmp_path / "out")


def test_target_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    """What is at the target is not overwritten: neither a file, nor other files, nor a bundle without force."""
    (tmp_path / "file").write_text("mine")
    assert "is a file" in _refused(checkpoint, tmp_path / "file", force=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "other files" in _refused(checkpoint, tmp_path / "full")
    assert "other files" in _refused(checkpoint, tmp_path / "full", force=True)
    (tmp_path / "empty").mkdir()
    bundle = exporter.export(checkpoint, tmp_path / "empty")
    assert "--force" in _refused(checkpoint, tmp_path / "empty")
    again = exporter.export(checkpoint, tmp_path / "empty", force=True, precision="fp32")
    assert again.decoder.precision == "fp32"
    assert not (bundle.root / "decoder" / "int4").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "full"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"precision": "int8"}, "precision 'int8'"),
        ({"block_size": 48}, "block size 48"),
        ({"accuracy_level": 7}, "accuracy level 7"),
    ],
)
def test_options(checkpoint: Path, tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    """Options that do not exist are refused with those that do."""
    assert sentence in _refused(checkpoint, tmp_path / "out", **options)


def test_nothing_is_printed(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without bars an export is silent on both streams; with bars it shows each stage on stderr alone."""
    exporter.export(checkpoint, tmp_path / "quiet", progress=False)
    assert capfd.readouterr() == ("", "")
    exporter.export(checkpoint, tmp_path / "shown", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    for stage in ("vision tensors", "decoder int4", "decoder int8", "embedding", "digests"):
        assert stage in err


def test_short_source_while_reading(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that shrinks under the export is reported, not half copied."""
    source = shutil.copytree(checkpoint, tmp_path / "source")

    steps = iter([lambda: None, lambda: _truncate(source)])  # before and after the headers are read
    monkeypatch.setattr("exporter.pipeline.check_space", lambda *_: next(steps)())
    assert "ended early" in _refused(source, tmp_path / "out")


def test_bundle_is_returned_open(int4_bundle: Bundle) -> None:
    """What export returns is what opening and verifying its directory gives."""
    assert Bundle.open(int4_bundle.root, verify=True) == int4_bundle
