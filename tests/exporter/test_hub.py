"""A Hugging Face id: the config comes first, the weights last, and everything that can be checked before is."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import exporter
from exporter import ExportError
from serving.bundle import Bundle
from tests.exporter.hub import COMMIT, Hub, running_hub

MODEL = "someone/Fine-Tuned-VL"
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with nothing on it."""
    with running_hub(monkeypatch, tmp_path / "cache") as running:
        yield running


@pytest.fixture
def published(checkpoint: Path, tmp_path: Path, hub: Hub) -> Path:
    """A checkpoint on it, with a picture and another framework's files beside."""
    folder = shutil.copytree(checkpoint, tmp_path / "published")
    (folder / "README.md").write_text("# Model")
    (folder / "photo.png").write_bytes(b"picture")
    (folder / "original").mkdir()
    (folder / "original" / "old.safetensors").write_bytes(b"weights of other names")
    hub.models[MODEL] = folder
    return folder


def _refused(out: Path, source: str = MODEL, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        exporter.export(source, out, **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_is_downloaded(published: Path, hub: Hub, tmp_path: Path, int4_bundle: Bundle) -> None:
    """The bundle is that of the local checkpoint, named by the id; only what is needed was sent, the weights last."""
    bundle = exporter.export(MODEL, tmp_path / "out")
    assert bundle.model.id == "Fine-Tuned-VL"
    assert bundle.files == int4_bundle.files
    assert hub.sent[0] == "config.json"
    assert hub.sent[-1] == WEIGHTS
    wanted = {file.name for file in published.iterdir() if file.suffix in {".json", ".jinja", ".safetensors"}}
    assert sorted(hub.sent) == sorted(wanted)  # each once, no picture, nothing of a folder


def test_a_second_export_downloads_nothing(published: Path, hub: Hub, tmp_path: Path) -> None:
    """What is in the cache is used, also when the hub is out of reach; the snapshot's path names the repository."""
    exporter.export(MODEL, tmp_path / "out", phases=["int4"])
    hub.sent.clear()
    exporter.export(MODEL, tmp_path / "again", phases=["int4"])
    assert hub.sent == []
    hub.error = "Down"
    exporter.export(MODEL, tmp_path / "offline", phases=["int4"])
    snapshot = tmp_path / "cache" / "models--someone--Fine-Tuned-VL" / "snapshots" / COMMIT
    assert exporter.export(snapshot, tmp_path / "local", phases=["int4"]).model.id == "Fine-Tuned-VL"


def test_another_family_costs_its_config_alone(published: Path, hub: Hub, tmp_path: Path) -> None:
    """A mixture of experts is refused when nothing but config.json has been sent."""
    _edit(published / "config.json", model_type="qwen3_vl_moe", architectures=["Qwen3VLMoeForConditionalGeneration"])
    assert "only dense Qwen3-VL" in _refused(tmp_path / "out")
    assert hub.sent == ["config.json"]


def _without_end(published: Path) -> None:
    (published / "generation_config.json").unlink()
    config = json.loads((published / "config.json").read_text())
    config["text_config"]["eos_token_id"] = None
    _edit(published / "config.json", **config)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: _edit(root / "preprocessor_config.json", resample=2), "resample = 2"),
        (lambda root: _edit(root / "config.json", quantization_config={"quant_method": "awq"}), "quantized with AWQ"),
        (_without_end, "does not say which token ends"),
    ],
)
def test_settings_are_checked_before_the_weights(
    published: Path, hub: Hub, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    """What the small files tell is refused without the weights."""
    damage(published)
    assert sentence in _refused(tmp_path / "out")
    assert WEIGHTS not in hub.sent


def test_the_disk_is_checked_before_the_weights(
    published: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that the cache's disk cannot hold beside the bundle are not downloaded."""
    hub.sizes[WEIGHTS] = 60 * 2**30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=60 * 2**30))
    sentence = _refused(tmp_path / "out")
    assert re.search(r"weights of someone/Fine-Tuned-VL take 60\.0 GiB, the bundle .* 60\.0 GiB free", sentence)
    assert WEIGHTS not in hub.sent
    # With the true size there is room.
    hub.sizes.clear()
    shutil.rmtree(tmp_path / "cache")
    assert exporter.export(MODEL, tmp_path / "out", phases=["int4"]).model.id == "Fine-Tuned-VL"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("model-Q4_K_M.gguf", "GGUF", "someone/Fine-Tuned-VL holds GGUF files"),
        ("adapter_config.json", '{"base_model_name_or_path": "Qwen/x"}', "holds only an adapter"),
        ("README.md", "# Nothing", r"has no config\.json"),
    ],
)
def test_other_formats(hub: Hub, tmp_path: Path, name: str, content: str, sentence: str) -> None:
    """A repository of another format is named, and none of its files is sent."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / name).write_text(content)
    hub.models[MODEL] = tmp_path / "repository"
    assert re.search(sentence, _refused(tmp_path / "out"))
    assert hub.sent == []


def test_revisions(published: Path, hub: Hub, tmp_path: Path) -> None:
    """The revision asked for is the one that comes; one that is not there is named."""
    assert "no revision 'v2'" in _refused(tmp_path / "out", revision="v2")
    hub.revisions.append("v2")
    exporter.export(MODEL, tmp_path / "out", revision="v2", phases=["int4"])
    assert (tmp_path / "cache" / "models--someone--Fine-Tuned-VL" / "refs" / "v2").read_text() == COMMIT


def test_no_access(published: Path, hub: Hub, tmp_path: Path) -> None:
    """A model that is not there and one whose terms were not accepted are told apart."""
    assert "no model someone/Typo on Hugging Face" in _refused(tmp_path / "out", "someone/Typo")
    hub.error = "GatedRepo"
    assert "accepted its terms" in _refused(tmp_path / "out")


def test_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network the sentence says so and what to do; nothing is tried for long."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    sentence = _refused(tmp_path / "out", "Qwen/x", revision="v2")
    assert "Hugging Face could not be reached to download Qwen/x at v2" in sentence
    assert "local checkpoint directory" in sentence
