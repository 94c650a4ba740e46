"""Which matrix is the output head: the one that transformers takes, whatever the config says of tying."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import exporter
from exporter import ExportError
from exporter.families.registry import open_checkpoint
from tests.checkpoints import make_checkpoint
from tests.exporter.families.qwen3_vl.reference import Exported, Reference, last_logits

TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"


def _variant(source: Path, out: Path, *, head: torch.Tensor | None, top: bool | None, text: bool | None) -> Path:
    shutil.copytree(source, out)
    state = load_file(source / "model.safetensors")
    save_file(state | ({} if head is None else {HEAD: head}), out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    for part, said in ((config, top), (config["text_config"], text)):
        part.pop("tie_word_embeddings", None)
        if said is not None:
            part["tie_word_embeddings"] = said
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied checkpoint, which stores no head."""
    return make_checkpoint(tmp_path_factory.mktemp("tied") / "checkpoint", tie=True)


def _logits(checkpoint: Path, bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    """What transformers and the bundle's float32 graph say after the same prompt."""
    exported = exporter.export(checkpoint, bundle, precision="fp32")
    reference = Reference(checkpoint)
    prompt = reference.prompt("What is in the picture?", images=[(4, 6)])
    generator = Exported(exported.decoder_dir).start(prompt, reference.features(prompt))
    return reference.logits(prompt), last_logits(generator)


def test_a_stored_head_that_differs_is_used(tied: Path, tmp_path: Path) -> None:
    """A tied config with another head in the files: transformers takes the head, and so does the bundle."""
    table = load_file(tied / "model.safetensors")[TABLE]
    head = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    source = _variant(tied, tmp_path / "source", head=head, top=True, text=True)
    expected, got = _logits(source, tmp_path / "bundle")
    np.testing.assert_allclose(got, expected, atol=2e-3, rtol=1e-4)  # logits of a head of ones: a hundred times larger
    # Control: the table in its place is far off.
    of_table, _ = _logits(tied, tmp_path / "of-table")
    assert np.abs(of_table - expected).max() > 10
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert manifest["text"]["tie_word_embeddings"] is False


def test_a_stored_copy_of_the_table_is_the_table(tied: Path, tmp_path: Path) -> None:
    """A tied config whose files hold the table twice is tied: no weight is counted twice."""
    head = load_file(tied / "model.safetensors")[TABLE].clone()
    again = open_checkpoint(_variant(tied, tmp_path / "source", head=head, top=True, text=True))
    assert again.parameters == open_checkpoint(tied).parameters
    assert again.config["tie_word_embeddings"]


def test_without_a_head_either_part_ties(tied: Path, tmp_path: Path) -> None:
    """No head, top level untied, language model tied: the table is the head, as with a config that ties throughout."""
    source = _variant(tied, tmp_path / "source", head=None, top=False, text=True)
    exported = exporter.export(source, tmp_path / "bundle", precision="fp32")
    reference = Reference(tied)  # of the untied config transformers would draw a random head
    prompt = reference.prompt("What is in the picture?")
    got = last_logits(Exported(exported.decoder_dir).start(prompt, reference.features(prompt)))
    np.testing.assert_allclose(got, reference.logits(prompt), atol=1e-4, rtol=0)


def test_without_a_head_and_untied(tied: Path, tmp_path: Path) -> None:
    """No head and no word of tying: it is missing."""
    source = _variant(tied, tmp_path / "source", head=None, top=False, text=False)
    with pytest.raises(ExportError, match=r"lacks lm_head\.weight"):
        exporter.export(source, tmp_path / "bundle")
