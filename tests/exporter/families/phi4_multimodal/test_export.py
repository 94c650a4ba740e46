"""Phi-4-multimodal of both layouts: the graph gives transformers' logits and tokens, with the adapter for images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

import exporter
from exporter import ExportError
from exporter.divergence import Asked, Graph, kl_divergence
from exporter.families.phi4_multimodal.variant import VARIANT
from exporter.families.shared.adapter import switched
from exporter.families.shared.checkpoint import Checkpoint
from exporter.families.shared.layers import read_layer
from exporter.families.shared.smoothing import smooth_keys, smooth_layer
from serving.bundle import Bundle
from serving.families import Phi4MultimodalInfo
from tests.exporter.families.phi4_multimodal.cases import CASES, TOKENS, asked, logits_of
from tests.phi4_checkpoints import ORIGINAL, make_phi4, reference
from triptych_cli.main import main


@pytest.fixture(scope="module")
def published(native: Path, published_files: Path) -> Bundle:
    """The published files, exported in fp32."""
    return exporter.export(published_files, native.parent / "published-fp32", precision="fp32")


@pytest.mark.parametrize("layout", ["native", "published"])
def test_logits_and_greedy_tokens_are_transformers(
    layout: str, exact: Bundle, published: Bundle, references: dict[bool, Any]
) -> None:
    """With the adapter if there is an image, up to and beyond the short factors, and across."""
    bundle = {"native": exact, "published": published}[layout]
    graph = Graph(bundle, "fp32", threads=1, length=256)
    for length, rows in CASES.values():
        question = asked(bundle, length, rows)
        tokens, logits = graph.greedy(question, TOKENS)
        expected = logits_of(references[rows > 0], question, tokens)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        assert tokens == expected[:-1].argmax(-1).tolist()


def test_generate_without_a_cache_gives_these_tokens(exact: Bundle, references: dict[bool, Any]) -> None:
    """Also where the sequence outgrows the short factors; see `cases`."""
    question = asked(exact, ORIGINAL - 5, 0)
    tokens, _ = Graph(exact, "fp32", threads=1, length=256).greedy(question, TOKENS)
    ids = torch.tensor([question.prompt.token_ids])
    generated = references[False].generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        use_cache=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    assert generated[0, ORIGINAL - 5 :].tolist() == tokens


def _apart(exact: Bundle, model: Any, question: Asked) -> float:
    logits = Graph(exact, "fp32", threads=1, length=256).led(question, [])
    return float(np.abs(logits - logits_of(model, question, [])).max())


def test_what_is_left_out_is_seen(exact: Bundle, native: Path, references: dict[bool, Any], tmp_path: Path) -> None:
    """Negative controls: no adapter, another scale, and short factors alone give other logits."""
    image, text = asked(exact, 20, 12), asked(exact, ORIGINAL + 1, 0)
    assert _apart(exact, references[True], image) < 1e-4
    assert _apart(exact, references[False], image) > 0.1
    assert _apart(exact, reference(native, adapted=True, scale=1.0), image) > 0.1
    source = shutil.copytree(native, tmp_path / "short")
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["long_factor"] = config["rope_parameters"]["short_factor"]
    (source / "config.json").write_text(json.dumps(config))
    assert _apart(exact, references[False], text) < 1e-4
    assert _apart(exact, reference(source, adapted=False), text) > 0.1


def test_the_bundle_has_what_the_services_need(exact: Bundle, published: Bundle, native: Path) -> None:
    """The encoder by transformers' names in both layouts, nothing of audio, nothing for onnxruntime-genai."""
    assert isinstance(exact.info, Phi4MultimodalInfo)
    assert exact.text.model_dump()["original_max_position_embeddings"] == ORIGINAL
    assert exact.vision.model_dump() == published.vision.model_dump()
    assert exact.decoder.adapter is True
    stored = load_file(native / "model.safetensors")
    prefix = "model.embed_tokens_extend.image_embed."
    wanted = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    for bundle in (exact, published):
        written = load_file(bundle.vision_dir / "model.safetensors")
        assert written.keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in written.items())
        config = json.loads((bundle.vision_dir / "config.json").read_text())
        assert config["vision_config"]["crop_size"] == exact.vision.model_dump()["crop_size"]
        assert config["hidden_size"] == exact.text.hidden_size
        assert not (bundle.decoder_dir / "genai_config.json").exists()
        assert not (bundle.decoder_dir / "vision.onnx").exists()
        bundle.verify("decoder")
    assert exact.encoder_fingerprint == published.encoder_fingerprint


def test_without_an_adapter_there_is_none(
    native: Path,
    references: dict[bool, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A checkpoint without the folder is served by its own weights, and the command says so, as the bundle does."""
    source = shutil.copytree(native, tmp_path / "source", ignore=shutil.ignore_patterns("*-lora"))
    monkeypatch.setattr("triptych_cli.main.interrupt_on_signals", lambda: None)  # of the whole process
    main(["export", str(source), str(tmp_path / "bundle"), "--precision", "fp32"])
    assert "has no vision adapter" in capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.decoder.adapter is False
    graph = onnx.load(bundle.graph_path("fp32"), load_external_data=False).graph
    assert not {value.name for value in graph.input} & {"adapter_tokens"}
    question = asked(bundle, 20, 12)
    assert _apart(bundle, references[False], question) < 1e-4


def test_some_matrices_have_an_adapter_and_scales_by_pattern(tmp_path: Path) -> None:
    """Any subset of the matrices, rank-stabilized scales, and values for some of the modules."""
    source = make_phi4(tmp_path / "source", "native", targets=("self_attn.qkv_proj", "mlp.down_proj"), layers=2)
    path = source / "vision-lora" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_rslora": True, "alpha_pattern": {"layers.1.mlp.down_proj": 2}}))
    tensors = load_file(source / "vision-lora" / "adapter_model.safetensors")
    model = reference(source, adapted=False)
    for name, down in tensors.items():
        if ".lora_A." in name:
            alpha = 2 if "layers.1.mlp.down_proj" in name else config["lora_alpha"]
            matrix = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            matrix.weight.data += alpha / config["r"] ** 0.5 * tensors[name.replace("_A.", "_B.")] @ down
    bundle = exporter.export(source, tmp_path / "bundle", precision="fp32")
    assert _apart(bundle, model, asked(bundle, 20, 12)) < 1e-4


def _set(**values: Any) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        path = source / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set(attention_bias=True), "attention_bias is true"),
        (_set(sliding_window=16), r"sliding windows in the language model \(sliding_window\)"),
        (_set(hidden_act="foo"), r"config.json asks for the activation 'foo' \(hidden_act\), and only silu, "),
        (_set(vision_config={"hidden_act": "foo"}), r"'foo' \(vision_config.hidden_act\), and only gelu and gelu_py"),
        (
            _set(vision_config={"feature_layer": 28, "image_token_id": 0}),
            "vision_config: feature_layer is 28; with 27 layers",
        ),
        (_set(model_type="phi4mm", architectures=["Phi4MMForCausalLM"]), "not a valid Phi-4-multimodal config"),
    ],
)
def test_what_is_not_supported_is_refused(
    change: Callable[[Path], None], says: str, native: Path, tmp_path: Path
) -> None:
    """Before any work, in a sentence."""
    source = shutil.copytree(native, tmp_path / "source")
    change(source)
    with pytest.raises(ExportError, match=says):
        exporter.export(source, tmp_path / "bundle", precision="fp32")
    assert not (tmp_path / "bundle").exists()


def test_smoothing_changes_no_bit_of_a_layer(native: Path) -> None:
    """With the adapter or without: A has the factors of the matrices beside it, and B those of their outputs."""
    checkpoint = Checkpoint.open(native, VARIANT)
    states = torch.randn(1, 12, checkpoint.text.hidden_size, generator=torch.Generator().manual_seed(0))
    angles = VARIANT.rotary(checkpoint.text)(states, torch.arange(12)[None])

    def outliers() -> Any:
        """A layer with columns that ask for factors."""
        layer = read_layer(checkpoint, 0)
        attention, mlp = layer.self_attn, layer.mlp
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.down_proj):
            reader.weight.data[:, :5] *= 2**-7
        layer.self_attn.k_proj.weight.data[1] *= 2**6
        return layer

    @torch.no_grad()
    def computed(layer: Any, *, adapted: bool) -> torch.Tensor:
        with switched(layer, on=adapted):
            return torch.as_tensor(layer(states, position_embeddings=angles, attention_mask=None))

    smoothed, before = outliers(), outliers()
    smooth_layer(smoothed)
    smooth_keys(smoothed)
    assert not torch.equal(smoothed.self_attn.qkv_adapter.weight, before.self_attn.qkv_adapter.weight)
    assert not torch.equal(smoothed.self_attn.k_proj.adapter, before.self_attn.k_proj.adapter)
    assert not torch.equal(smoothed.mlp.up_proj.adapter, before.mlp.up_proj.adapter)
    for adapted in (False, True):
        assert torch.equal(computed(smoothed, adapted=adapted), computed(before, adapted=adapted))
    assert not torch.equal(computed(before, adapted=False), computed(before, adapted=True))


def test_int4_and_int8_are_near(native: Path, exact: Bundle) -> None:
    """Calibrated on the package's pictures and texts; by our operators and by ONNX Runtime's, keys in 8 bits or 16."""
    bundle = exporter.export(native, native.parent / "int4", calibrate=True)
    assert bundle.decoder.calibration is not None
    for length, rows in (CASES["text"], CASES["image that outgrows the short factors"]):
        question = asked(exact, length, rows)
        tokens, logits = Graph(exact, "fp32", threads=1, length=256).greedy(question, TOKENS)
        for operators, kv_dtype in ((True, "int8"), (True, "float16"), (False, "float16")):
            int4, int8 = (
                kl_divergence(
                    logits,
                    Graph(
                        bundle,
                        name,
                        threads=1,
                        operators=operators,
                        kv_dtype=kv_dtype,  # type: ignore[arg-type]
                        length=256,
                    ).led(question, tokens),
                ).mean()
                for name in ("int4", "int8")
            )
            assert 0 < int8 < 0.05
            assert int8 < int4 < 0.5
