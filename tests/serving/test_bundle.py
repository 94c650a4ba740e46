"""Opening a bundle: what is checked, and the sentence about what is wrong."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from serving.bundle import Bundle, BundleError
from serving.families import Frozen, Qwen3VLInfo, TextInfo, TextTokens


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle in form, with files that hold no model."""
    contents = {
        "decoder/int4/model.onnx": b"graph",
        "decoder/tokenizer.json": b"{}",
        "vision/model.safetensors": b"x" * 9,
    }
    files = {}
    for name, content in contents.items():
        path = tmp_path / "bundle" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _write(tmp_path / "bundle", _description(files))
    return tmp_path / "bundle"


def _description(files: dict[str, Any]) -> dict[str, Any]:
    """A `bundle.json` of format version 1, as exports wrote it: it is not to change."""
    return {
        "format": "triptych-bundle",
        "format_version": 1,
        "model": {"id": "Tiny", "family": "qwen3_vl", "parameters": 1000},
        "text": {
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 320,
            "max_position_embeddings": 4096,
            "mrope_section": [6, 5, 5],
            "tie_word_embeddings": True,
        },
        "vision": {
            "depth": 4,
            "hidden_size": 64,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "in_channels": 3,
            "deepstack_visual_indexes": [1, 3],
        },
        "tokens": {"image": 10, "video": 11, "vision_start": 12, "vision_end": 13, "eos": [1, 2], "pad": None},
        "decoder": {
            "precision": "int4",
            "graphs": {"int4": "decoder/int4/model.onnx"},
            "block_size": 32,
            "accuracy_level": 4,
            "last_position_logits": True,
        },
        "encoder_fingerprint": "0" * 64,
        "files": files,
        "created": "2026-01-01T00:00:00+00:00",
        "triptych_version": "0.1.0",
        "versions": {"onnxruntime": "1.32.0"},
    }


def _write(root: Path, description: dict[str, Any]) -> None:
    (root / "bundle.json").write_text(json.dumps(description))


def _edit(root: Path, **changes: Any) -> None:
    _write(root, json.loads((root / "bundle.json").read_text()) | changes)


def _complaint(root: Path, *, verify: bool = False) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(root, verify=verify)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_open(root: Path) -> None:
    """A good bundle opens, from a path or a string, and tells what the services ask of it."""
    bundle = Bundle.open(str(root), verify=True)
    assert bundle == Bundle.open(root)
    assert bundle.root == root
    assert bundle.vision_dir == root / "vision"
    assert bundle.decoder_dir == root / "decoder"
    assert bundle.feature_width == 3 * 64
    assert bundle.context_length == 4096
    assert bundle.tokens.eos == (1, 2)
    assert bundle.graph_path("int4") == root / "decoder" / "int4" / "model.onnx"


def test_the_first_version_opens(root: Path) -> None:
    """Every entry that the family decides is where it was read before."""
    description, bundle = json.loads((root / "bundle.json").read_text()), Bundle.open(root)
    assert bundle.model.family == "qwen3_vl"
    assert isinstance(bundle.info, Qwen3VLInfo)
    assert bundle.encoder_fingerprint == description["encoder_fingerprint"]
    for name in ("text", "vision", "tokens"):
        assert json.loads(getattr(bundle, name).model_dump_json()) == description[name]


class _TextOnly(Frozen):
    """A family without an encoder."""

    family: Literal["text_only"]
    text: TextInfo
    tokens: TextTokens


class _MoreFamilies(Bundle):
    """The bundle of a Triptych that has one family more."""

    info: Annotated[Qwen3VLInfo | _TextOnly, Field(discriminator="family")]


def test_a_family_without_vision(root: Path) -> None:
    """A further family may do without what it does not have, while the others may not."""
    description = json.loads((root / "bundle.json").read_text())
    assert isinstance(_MoreFamilies.open(root).info, Qwen3VLInfo)
    del description["vision"], description["encoder_fingerprint"]
    description["tokens"], text = {"eos": [1]}, description["text"]
    del text["mrope_section"]
    _write(root, description | {"model": description["model"] | {"family": "text_only"}})
    opened = _MoreFamilies.open(root)
    assert isinstance(opened.info, _TextOnly)
    assert (opened.info.text.hidden_size, opened.info.tokens.eos) == (64, (1,))
    assert "(model.family: " in _complaint(root)  # without that family it is named as unknown
    _write(root, description)
    assert "(text.mrope_section: " in _complaint(root)


def test_it_is_a_value(root: Path) -> None:
    """Nothing of an open bundle can be set."""
    bundle = Bundle.open(root)
    with pytest.raises(ValidationError):
        bundle.created = "now"
    with pytest.raises(ValidationError):
        bundle.text.hidden_size = 1


def test_later_fields_are_ignored(root: Path) -> None:
    """A field or a further graph of a later revision of the same format does no harm."""
    _edit(root, licence="Apache-2.0")
    assert Bundle.open(root).model.id == "Tiny"


def test_a_second_graph(root: Path) -> None:
    """A bundle may hold a graph beside its own; one from before says nothing of it, nor of smoothing, and opens."""
    old = Bundle.open(root)
    assert not old.decoder.smoothed
    assert "int8" not in old.decoder.graphs
    description = json.loads((root / "bundle.json").read_text())
    graph = root / "decoder" / "int8" / "model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"other")
    digest = {"size": 5, "sha256": hashlib.sha256(b"other").hexdigest()}
    name = "decoder/int8/model.onnx"
    graphs = {**description["decoder"]["graphs"], "int8": name}
    decoder = description["decoder"] | {"graphs": graphs, "smoothed": True}
    _edit(root, decoder=decoder)
    assert f"int8 graph {name} is not among its files" in _complaint(root)
    _edit(root, decoder=decoder, files={**description["files"], name: digest})
    bundle = Bundle.open(root, verify=True)
    assert bundle.graph_path("int8") == graph
    assert bundle.graph_path("int4") == old.graph_path("int4")
    assert bundle.decoder.smoothed


def test_a_graph_it_does_not_have(root: Path) -> None:
    """Asking for another precision says which there are."""
    with pytest.raises(BundleError, match=r"no int8 graph \(it has int4\)"):
        Bundle.open(root).graph_path("int8")


def test_no_directory(tmp_path: Path) -> None:
    """The sentence says how to make one."""
    assert "triptych export" in _complaint(tmp_path / "nothing")


def test_no_description(root: Path) -> None:
    """A directory without bundle.json, such as a checkpoint or a broken copy, is not a bundle."""
    (root / "bundle.json").unlink()
    assert "no bundle.json" in _complaint(root)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "triptych-bundle"}', "\x00"])
def test_unreadable_description(root: Path, content: str) -> None:
    """A bundle.json that is not one is refused by name."""
    (root / "bundle.json").write_text(content)
    assert "bundle.json" in _complaint(root)


def test_other_formats(root: Path) -> None:
    """Another format and another version are told apart."""
    _edit(root, format_version=2)
    assert "format 2" in _complaint(root)
    _edit(root, format="something")
    assert "does not describe a Triptych bundle" in _complaint(root)


def test_invalid_description(root: Path) -> None:
    """The first wrong field is named by its place in the file."""
    description = json.loads((root / "bundle.json").read_text())
    _edit(root, text=description["text"] | {"head_dim": 0})
    assert "(text.head_dim: " in _complaint(root)
    _edit(root, text=description["text"], encoder_fingerprint="0")
    assert "(encoder_fingerprint: " in _complaint(root)
    _edit(root, encoder_fingerprint="0" * 64, files={"x": {"size": -1, "sha256": "0" * 64}})
    assert "(files.x.size: " in _complaint(root)


@pytest.mark.parametrize("model", [{"family": "other"}, {"family": 1}, {}, "a name", None])
def test_unknown_family(root: Path, model: Any) -> None:
    """A family that is not read, or none, is refused as the rest of the description is."""
    given = {"id": "Tiny", "parameters": 1} | model if isinstance(model, dict) else model
    _edit(root, model=given)
    assert "is not valid (model" in _complaint(root)


def test_missing_file(root: Path) -> None:
    """A missing file is named."""
    (root / "decoder" / "tokenizer.json").unlink()
    assert "decoder/tokenizer.json is missing" in _complaint(root)


def test_short_file(root: Path) -> None:
    """A short file is named with both sizes."""
    (root / "vision" / "model.safetensors").write_bytes(b"x")
    assert "vision/model.safetensors has 1 bytes instead of 9" in _complaint(root)


def test_changed_file(root: Path) -> None:
    """A file of the right size and other content is found when asked to verify."""
    (root / "vision" / "model.safetensors").write_bytes(b"y" * 9)
    Bundle.open(root)
    assert "vision/model.safetensors does not match" in _complaint(root, verify=True)
    Bundle.open(root, verify=True, folder="decoder")
    with pytest.raises(BundleError, match="does not match"):
        Bundle.open(root, verify=True, folder="vision")


def test_weights_beyond_the_memory(root: Path) -> None:
    """Weights that cannot fit are refused before they are loaded, with both sizes."""
    bundle = Bundle.open(root)
    bundle.check_memory("vision", 1 << 30)
    with pytest.raises(BundleError, match=r"take 0\.0 GiB, and this process may use 0\.0 GiB"):
        bundle.check_memory("vision", 1)


def test_files_outside(root: Path) -> None:
    """A description cannot point out of its directory."""
    digest = {"size": 1, "sha256": "0" * 64}
    for name in ("../secret", "/etc/hostname"):
        _edit(root, files={name: digest})
        assert "outside the bundle" in _complaint(root)


def test_graph_without_file(root: Path) -> None:
    """A graph that is not among the files is missing, and so is a precision without a graph."""
    decoder = json.loads((root / "bundle.json").read_text())["decoder"]
    _edit(root, decoder=decoder | {"graphs": {"int4": "decoder/other.onnx"}})
    assert "decoder/other.onnx is not among its files" in _complaint(root)
    _edit(root, decoder=decoder | {"graphs": {"int8": "decoder/int4/model.onnx"}})
    assert "no entry for its own precision" in _complaint(root)


def test_reading_needs_no_heavy_library() -> None:
    """The gateway's image has neither torch nor onnxruntime nor transformers, and it reads bundles."""
    code = (
        "import sys, serving.bundle; print([m for m in ('torch', 'onnxruntime', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
