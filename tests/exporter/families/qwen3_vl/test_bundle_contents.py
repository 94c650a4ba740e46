"""What a bundle holds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

import exporter
from serving.bundle import Bundle
from tests.checkpoints import CHAT_TEMPLATE, make_checkpoint

FILES = {
    "vision/config.json",
    "vision/model.safetensors",
    "vision/preprocessor_config.json",
    "vision/video_preprocessor_config.json",
    "decoder/genai_config.json",
    "decoder/int4/model.onnx",
    "decoder/int4/model.onnx.data",
    "decoder/int8/model.onnx",
    "decoder/int8/model.onnx.data",
    "decoder/embedding.onnx",
    "decoder/embedding.onnx.data",
    "decoder/vision.onnx",
    "decoder/tokenizer.json",
    "decoder/tokenizer_config.json",
    "decoder/chat_template.jinja",
    "decoder/generation_config.json",
    "decoder/config.json",
}


def test_every_file_is_there_and_digested(int4_bundle: Bundle) -> None:
    """The files on disk are those of the contract, each with its size and SHA-256, and nothing else is there."""
    root = int4_bundle.root
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert on_disk == FILES | {"bundle.json"}
    assert set(int4_bundle.files) == FILES
    for name, info in int4_bundle.files.items():
        content = (root / name).read_bytes()
        assert info.size == len(content)
        assert info.sha256 == hashlib.sha256(content).hexdigest()
    assert list(root.parent.iterdir()) == [root]


def test_description(int4_bundle: Bundle, checkpoint: Path) -> None:
    """bundle.json says what the checkpoint's config says, and names the model after its directory."""
    config: Any = Qwen3VLConfig.from_pretrained(checkpoint)
    model = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint)
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    bundle = int4_bundle
    assert bundle.model.id == "Tiny-Qwen3-VL"
    assert bundle.model.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert bundle.text.mrope_section == (6, 5, 5)
    assert bundle.text.head_dim == 32
    assert bundle.text.vocab_size == config.text_config.vocab_size
    assert bundle.text.tie_word_embeddings
    assert bundle.vision.deepstack_visual_indexes == (0, 1, 2)
    assert bundle.vision.patch_size == 16
    assert bundle.media_tokens.image == config.image_token_id
    assert bundle.media_tokens.vision_end == config.vision_end_token_id
    assert list(bundle.tokens.eos) == generation["eos_token_id"]
    assert bundle.tokens.pad == generation["pad_token_id"]
    assert bundle.feature_width == 4 * config.text_config.hidden_size
    assert bundle.context_length == config.text_config.max_position_embeddings
    assert bundle.decoder.graphs == {"int4": "decoder/int4/model.onnx", "int8": "decoder/int8/model.onnx"}
    assert bundle.decoder.smoothed
    assert bundle.versions["onnxruntime-genai"] == "0.18.0"


def test_vision_tensors_are_byte_equal(int4_bundle: Bundle, checkpoint: Path) -> None:
    """The encoder's tensors lose their prefix and nothing else; no other tensor comes along."""
    source = load_file(checkpoint / "model.safetensors")
    expected = {name.removeprefix("model.visual."): t for name, t in source.items() if name.startswith("model.visual.")}
    copied = load_file(int4_bundle.vision_dir / "model.safetensors")
    assert copied.keys() == expected.keys()
    for name, tensor in copied.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name])


def test_transformers_reads_the_configs_and_the_tokenizer(int4_bundle: Bundle) -> None:
    """config.json and the tokenizer files load as transformers' own."""
    for folder in (int4_bundle.vision_dir, int4_bundle.decoder_dir):
        config: Any = Qwen3VLConfig.from_pretrained(folder)
        assert config.architectures == ["Qwen3VLForConditionalGeneration"]
        assert config.text_config.rope_parameters["mrope_section"] == [6, 5, 5]
    tokenizer = AutoTokenizer.from_pretrained(int4_bundle.decoder_dir)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    ids = tokenizer("<|im_start|>the thing, über<|im_end|>").input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.decode(ids) == "<|im_start|>the thing, über<|im_end|>"


def test_genai_config_names_files_that_exist(int4_bundle: Bundle) -> None:
    """Every graph that onnxruntime-genai is to load lies where its configuration says."""
    model = json.loads((int4_bundle.decoder_dir / "genai_config.json").read_text())["model"]
    assert model["type"] == "qwen3_vl"
    assert model["decoder"]["hidden_size"] == int4_bundle.feature_width
    assert model["decoder"]["filename"] == "int4/model.onnx"
    for part in ("decoder", "embedding", "vision"):
        assert (int4_bundle.decoder_dir / model[part]["filename"]).is_file()


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
def test_graphs_are_valid(int4_bundle: Bundle, fp32_bundle: Bundle, precision: str) -> None:
    """ONNX's checker takes the graphs, the embeddings are wide and the logits are the last position's."""
    bundle = fp32_bundle if precision == "fp32" else int4_bundle
    path = bundle.graph_path(precision)
    onnx.checker.check_model(str(bundle.decoder_dir / "embedding.onnx"))
    graph = onnx.load(path, load_external_data=False).graph
    embeds = next(value for value in graph.input if value.name == "inputs_embeds")
    logits = next(value for value in graph.output if value.name == "logits")
    assert embeds.type.tensor_type.shape.dim[2].dim_value == bundle.feature_width
    assert logits.type.tensor_type.shape.dim[1].dim_value == 1
    kinds = {node.op_type for node in graph.node}
    assert ("MatMulNBits" in kinds) == (precision == "int4")
    assert ("MatMul" in kinds) == (precision == "fp32")
    assert ("MatMulIntegerToFloat" in kinds) == (precision == "int8")


def test_embedding_graph(fp32_bundle: Bundle, int4_bundle: Bundle, checkpoint: Path) -> None:
    """Token rows are padded with zeros, features replace media rows, and without features nothing is replaced."""
    table = load_file(checkpoint / "model.safetensors")["model.language_model.embed_tokens.weight"].float().numpy()
    hidden, width = table.shape[1], fp32_bundle.feature_width
    image, video = fp32_bundle.media_tokens.image, fp32_bundle.media_tokens.video
    ids = np.array([[3, image, image, 5, video]], np.int64)
    features = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    expected = np.zeros((1, 5, width), np.float32)
    expected[0, :, :hidden] = table[ids[0]]
    for bundle, tolerance in ((fp32_bundle, 0), (int4_bundle, 1e-3)):
        session = ort.InferenceSession(bundle.decoder_dir / "embedding.onnx")
        (bare,) = session.run(None, {"input_ids": ids, "image_features": features[:0]})
        np.testing.assert_allclose(bare, expected, atol=tolerance)
        (merged,) = session.run(None, {"input_ids": ids, "image_features": features})
        np.testing.assert_array_equal(merged[0, [1, 2, 4]], features)
        np.testing.assert_allclose(merged[0, [0, 3]], expected[0, [0, 3]], atol=tolerance)
        with pytest.raises(Exception, match="ScatterND"):
            session.run(None, {"input_ids": ids, "image_features": features[:2]})


def test_encoder_fingerprint(int4_bundle: Bundle, fp32_bundle: Bundle, tmp_path: Path) -> None:
    """The fingerprint depends on the encoder alone: not on the precision, but on its weights and its settings."""
    assert int4_bundle.encoder_fingerprint == fp32_bundle.encoder_fingerprint
    source = make_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    same = exporter.export(source, tmp_path / "same", model_id="another name")
    assert same.model.id == "another name"
    assert same.encoder_fingerprint == int4_bundle.encoder_fingerprint
    settings = json.loads((source / "preprocessor_config.json").read_text())
    (source / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4, 0.5, 0.5]}))
    assert exporter.export(source, tmp_path / "b").encoder_fingerprint != int4_bundle.encoder_fingerprint
    other = make_checkpoint(tmp_path / "other", dtype=torch.bfloat16, seed=9)
    assert exporter.export(other, tmp_path / "c").encoder_fingerprint != int4_bundle.encoder_fingerprint
