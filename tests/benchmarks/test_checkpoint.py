"""Random checkpoints of the published shapes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM, Qwen3VLForConditionalGeneration

import exporter
from benchmarks import checkpoint
from benchmarks.checkpoint import SHAPES, make
from benchmarks.errors import BenchError
from serving.bundle import Bundle
from tests.checkpoints import make_tokenizer


def test_a_checkpoint_is_one_that_can_be_exported(tiny_checkpoint: Path, tiny: Bundle) -> None:
    """Its dimensions are the shape's, and it becomes a bundle."""
    shape = SHAPES["tiny"]
    assert tiny.text.hidden_size == shape.text["hidden_size"]
    assert tiny.text.vocab_size == shape.vocab_size
    assert tiny.context_length == shape.context
    assert tiny.vision.deepstack_visual_indexes == tuple(shape.vision["deepstack_visual_indexes"])
    assert [path.name for path in tiny_checkpoint.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("2b", 2.1), ("4b", 4.4), ("8b", 8.8)),
        *(("qwen3-0.6b", 0.6), ("qwen3-1.7b", 1.7), ("qwen3-4b", 4.0), ("qwen3-8b", 8.2)),
    ],
)
def test_the_published_shapes_have_their_size(name: str, billions: float) -> None:
    """The parameters of the shapes, counted by hand, are as many as the published models have."""
    shape = SHAPES[name]
    text, vision = shape.text, shape.vision
    width, heads = text["hidden_size"], text["num_attention_heads"] + text["num_key_value_heads"]
    layer = text["head_dim"] * (heads + text["num_attention_heads"] + text["num_key_value_heads"]) * width
    layer += 3 * width * text["intermediate_size"]
    total = (1 if shape.tied else 2) * shape.vocab_size * width + text["num_hidden_layers"] * layer
    if vision:
        block = 4 * vision["hidden_size"] ** 2 + 2 * vision["hidden_size"] * vision["intermediate_size"]
        total += vision["depth"] * block
    assert total / 1e9 == pytest.approx(billions, rel=0.05)


def test_phi_4_multimodal_has_an_adapter(tmp_path: Path) -> None:
    """A small model of its family is exported with the adapter; of audio there is nothing."""
    published = SHAPES["phi4-mm"]
    text = {**published.text, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = dataclasses.replace(
        published,
        text={**text, "num_key_value_heads": 2, "intermediate_size": 192},
        vision={**published.vision, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48},
        vocab_size=512,
        rank=32,
    )
    bundle = exporter.export(make(small, tmp_path / "made"), tmp_path / "bundle", calibrate=False, measure=False)
    assert bundle.decoder.adapter is True
    assert bundle.context_length == published.context


def test_another_tokenizer_may_be_given(tmp_path: Path) -> None:
    """Its own ids are in the configuration."""
    words = tmp_path / "tokenizer.json"
    make_tokenizer().save(str(words))
    made = make(SHAPES["tiny"], tmp_path / "made", tokenizer=words)
    config = json.loads((made / "config.json").read_text())
    assert config["image_token_id"] == Tokenizer.from_file(str(words)).token_to_id("<|image_pad|>")


def test_what_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that is there stays as it is, and a tokenizer of another family is refused, each in a sentence."""
    with pytest.raises(BenchError, match="exists"):
        make(SHAPES["tiny"], tmp_path)
    words = tmp_path / "tokenizer.json"
    Tokenizer.from_str(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    ).save(str(words))
    with pytest.raises(BenchError, match="not a tokenizer of this family"):
        make(SHAPES["tiny"], tmp_path / "made", tokenizer=words)
    with pytest.raises(SystemExit) as caught:
        checkpoint.main(["tiny", str(tmp_path)])
    assert caught.value.code == 1
    assert "exists" in capsys.readouterr().err


def test_a_checkpoint_is_one_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied or not, in one file or several, every weight of the model is there in bfloat16, and no other."""
    for tied, size in ((True, "2GB"), (False, "100KB")):
        monkeypatch.setattr(checkpoint, "SHARD_SIZE", size)
        made = make(dataclasses.replace(SHAPES["tiny"], tied=tied), tmp_path / str(tied))
        assert (len(list(made.glob("*.safetensors"))) > 1) is not tied
        model, info = Qwen3VLForConditionalGeneration.from_pretrained(made, dtype="auto", output_loading_info=True)
        assert not any(info.values())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
        assert float(model.lm_head.weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)
        assert model.model.visual.merger.norm.weight.eq(1).all()


def test_a_checkpoint_without_an_encoder(tmp_path: Path) -> None:
    """A shape of Qwen3 has the weights of transformers' model, no settings for media, and can be exported."""
    shape = SHAPES["qwen3-0.6b"]
    small = shape.text | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
    made = make(dataclasses.replace(shape, text=small, vocab_size=512, context=4096), tmp_path / "made")
    assert not list(made.glob("*preprocessor*"))
    _, info = Qwen3ForCausalLM.from_pretrained(made, dtype="auto", output_loading_info=True)
    assert not any(info.values())
    bundle = exporter.export(made, tmp_path / "bundle", precision="fp32", progress=False)
    assert not bundle.has_encoder
    assert (bundle.text.head_dim, bundle.text.num_attention_heads) == (128, 16)


def test_the_same_seed_draws_the_same_weights(tmp_path: Path) -> None:
    """Another seed draws others."""
    shape = SHAPES["tiny"]
    first, again, other = (
        (make(shape, tmp_path / str(index), seed=index // 2) / "model.safetensors").read_bytes() for index in range(3)
    )
    assert first == again
    assert first != other
