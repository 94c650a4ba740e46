"""A damaged or unsupported adapter is refused in a sentence that names what is wrong."""

from __future__ import annotations

import json
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

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]

CONFIG, WEIGHTS = "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors"
DOWN = "model.layers.1.mlp.down_proj"


def _set(**values: Any) -> Damage:
    """Change fields of the adapter's config."""

    def damage(source: Path) -> None:
        config = json.loads((source / CONFIG).read_text())
        (source / CONFIG).write_text(json.dumps(config | values))

    return damage


def _published(**values: Any) -> Damage:
    """Change fields of `vision_lora` in the published config."""

    def damage(source: Path) -> None:
        path = source / "config.json"
        config = json.loads(path.read_text())
        config["vision_lora"] |= values
        path.write_text(json.dumps(config))

    return damage


def _tensors(change: Callable[[Tensors], Tensors], name: str = WEIGHTS) -> Damage:
    return lambda source: save_file(change(load_file(source / name)), source / name, metadata={"format": "pt"})


def _without(pattern: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not re.search(pattern, name)}
        assert len(kept) < len(tensors)
        return kept

    return change


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def _changed(pattern: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {n: change(t).contiguous() if re.search(pattern, n) else t for n, t in tensors.items()}


def _removed(name: str) -> Damage:
    return lambda source: (source / name).unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_set(r=4), r"adapter_config.json gives .*layers.0.self_attn.qkv_proj rank 4, and .* has rank 6"),
        (
            _set(rank_pattern={"layers.1.mlp.down_proj": 3}),
            rf"{DOWN} rank 3, and .*adapter_model.safetensors has rank 6",
        ),
        (_tensors(_changed(r"1.mlp.down_proj.lora_B", lambda up: up[:, :5])), rf"{DOWN} rank 6, and .*B.* has rank 5"),
        (_set(r=0), "rank r is 0, not a positive"),
        (_set(r=-6), "rank r is -6, not a positive"),
        (_set(r="6"), "rank r is '6', not a positive"),
        (_set(r=None), "no lora_alpha and r"),
        (_set(lora_alpha=float("nan")), "lora_alpha is nan, not a finite"),
        (_set(lora_alpha="9"), "lora_alpha is '9', not a finite"),
        (_set(rank_pattern={"*x(": 3}), r"rank_pattern has the invalid regular expression '\*x\('"),
        (_set(rank_pattern=["x"]), r"rank_pattern is \['x'\], not an object"),
        (_set(alpha_pattern={"*x(": 3}), r"alpha_pattern has the invalid regular expression '\*x\('"),
        (_set(alpha_pattern=["x"]), r"alpha_pattern is \['x'\], not an object"),
        (_tensors(_without(r"layers\.2\.")), r"lacks base_model.model.model.layers.2.self_attn.qkv_proj.lora_A.weight"),
        (
            _tensors(_without(r"1.mlp.down_proj.lora_B")),
            rf"lacks base_model.model.{DOWN}.lora_B.weight, which .*config",
        ),
        (_tensors(lambda tensors: {}), r"adapter_model.safetensors lacks .*layers.0.self_attn.qkv_proj.lora_A"),
        (_removed(CONFIG), r"folder .*vision-lora has no adapter_config.json"),
        (_removed(WEIGHTS), r"folder .*vision-lora has no adapter_model.safetensors"),
        (lambda source: (source / WEIGHTS).write_bytes(b""), "adapter_model.safetensors is not a readable"),
        (_set(target_modules=["foo"]), "target_modules names foo"),
        (_set(target_modules=["o_proj"]), r"does not name model.layers.0.mlp.\w+_proj, for which adapter_model"),
        (_set(target_modules=r"model\.layers\.[01]\..*"), r"does not name model.layers.2."),
        (_set(target_modules="("), r"target_modules has the invalid regular expression '\('"),
        (_set(target_modules=7), "target_modules is 7, neither"),
        (_set(layers_to_transform=[0, 1]), r"does not name model.layers.2."),
        (_set(exclude_modules=["layers.2.mlp.down_proj"]), r"does not name model.layers.2.mlp.down_proj"),
        (_set(use_dora=True), "use_dora is True"),
        (_set(lora_bias=True), "lora_bias is True"),
        (_set(layer_replication=[[0, 2], [1, 3]]), r"layer_replication is \[\[0, 2\], \[1, 3\]\]"),
        (_set(alora_invocation_tokens=[1, 2]), r"alora_invocation_tokens is \[1, 2\]"),
        (_set(peft_type="IA3"), "peft_type is IA3"),
        (_tensors(_changed(r"layers.0", lambda half: half.to(torch.int8))), r"layers.0.* is stored as I8"),
        (_tensors(_changed(r"1.mlp.down_proj.lora_A", torch.flatten)), rf"A and B of {DOWN} have shapes"),
        (_tensors(_changed(r"1.mlp.down_proj.lora_A", lambda down: down[:, :9])), rf"beside {DOWN}, whose shape"),
        (_tensors(_renamed("layers.2.", "layers.9.")), r"safetensors is not supported: .*layers.9.* changes no matrix"),
    ],
)
def test_a_damaged_folder_is_refused(native: Path, tmp_path: Path, damage: Damage, says: str) -> None:
    """The sentence names the file at fault."""
    _refused(native, tmp_path, damage, says)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_published(r=3), r"config.json gives .*layers.0.self_attn.qkv_proj rank 3, and .* has rank 6"),
        (_published(r=0), "rank r is 0, not a positive"),
        (_published(layer="("), "vision_lora.layer has the invalid regular expression"),
        (_published(layer=r"layers\.[01]\..*"), r"vision_lora.layer does not name model.layers.2."),
        (_tensors(_without(r"\.vision\."), "model.safetensors"), r"lacks model.layers.0.*lora_A.vision.weight, which"),
        (
            _tensors(_without(r"layers\.2\..*\.vision\."), "model.safetensors"),
            r"lacks model.layers.2.self_attn.qkv_proj.lora_A.vision.weight",
        ),
        (_tensors(_without(r"2.mlp.down_proj.lora_B.vision"), "model.safetensors"), r"2.mlp.down_proj.lora_B.vision"),
    ],
)
def test_a_damaged_adapter_in_the_published_files_is_refused(
    published_files: Path, tmp_path: Path, damage: Damage, says: str
) -> None:
    """The sentence has the tensors' names in the files."""
    _refused(published_files, tmp_path, damage, says)


def test_without_a_pattern_each_layer_has_the_same_matrices(published_files: Path, tmp_path: Path) -> None:
    """The published config may lack `layer`."""

    def damage(source: Path) -> None:
        _published(layer=None)(source)
        _tensors(_without(r"2.mlp.down_proj.lora_..vision"), "model.safetensors")(source)

    _refused(published_files, tmp_path, damage, r"lacks model.layers.2.mlp.down_proj.lora_A.vision.weight")


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r"model\.layers\.\d+\.((self_attn\.(qkv|o)_proj)|(mlp\.(gate_up|down)_proj))"},
        {"target_modules": None, "lora_bias": False, "layer_replication": None, "alora_invocation_tokens": []},
        {"layers_to_transform": [0, 1, 2], "rank_pattern": {"down_proj": 6}, "exclude_modules": "lm_head"},
    ],
)
def test_other_ways_to_name_the_same_matrices(
    native: Path, exact: Bundle, tmp_path: Path, values: dict[str, Any]
) -> None:
    """The bundle is the same."""
    source = shutil.copytree(native, tmp_path / "native")
    _set(**values)(source)
    assert exporter.export(source, tmp_path / "bundle", precision="fp32").files == exact.files


@pytest.mark.parametrize("prefix", ["module.", "base_model.model."])
def test_a_trainers_prefix_is_ignored(published_files: Path, exact: Bundle, tmp_path: Path, prefix: str) -> None:
    """Also where the adapter is among the weights."""
    source = shutil.copytree(published_files, tmp_path / "published")
    _tensors(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}, "model.safetensors")(source)
    bundle = exporter.export(source, tmp_path / "bundle", precision="fp32")
    assert bundle.decoder.adapter is True
    graphs = {name: digest for name, digest in exact.files.items() if name.startswith("decoder/fp32/")}
    assert graphs
    assert graphs.items() <= bundle.files.items()


def _refused(checkpoint: Path, folder: Path, damage: Damage, says: str) -> None:
    source = shutil.copytree(checkpoint, folder / "source")
    damage(source)
    with pytest.raises(ExportError, match=says):
        exporter.export(source, folder / "bundle", precision="fp32")
    assert not (folder / "bundle").exists()
