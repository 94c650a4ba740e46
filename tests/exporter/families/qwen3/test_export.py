"""A model that takes text only: its bundle has no encoder, and its graph gives transformers' logits and tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as og
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

import exporter
from decoder_service import chat
from decoder_service.families.family import Prompt
from decoder_service.families.registry import family_of
from decoder_service.request.prompt import PromptBuilder
from exporter import ExportError
from exporter.divergence import Asked, Graph, kl_divergence
from serving.bundle import Bundle, BundleError
from serving.families import Qwen3Info
from tests.checkpoints import make_checkpoint, make_qwen3
from vision_service.families import registry as vision_families

QUESTION = "Why is the other sky in the east blue?"
TOKENS = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint, stored as published models are."""
    return make_qwen3(tmp_path_factory.mktemp("qwen3") / "checkpoint", dtype=torch.bfloat16, dialect="published")


@pytest.fixture(scope="module")
def exact(source: Path) -> Bundle:
    """Its fp32 bundle."""
    return exporter.export(source, source.parent / "fp32", precision="fp32")


def _prompt(bundle: Bundle, *, enable_thinking: bool | None = None) -> Prompt:
    """Two turns."""
    messages = [
        chat.Message(chat.Role.USER, (chat.Text("Hello there"),)),
        chat.Message(chat.Role.ASSISTANT, (chat.Text("Hello. What is it?"),)),
        chat.Message(chat.Role.USER, (chat.Text(QUESTION),)),
    ]
    builder = PromptBuilder.load(bundle.decoder_dir, family_of(bundle))
    return builder.expand(builder.render(messages, enable_thinking=enable_thinking), [])


def _asked(bundle: Bundle, prompt: Prompt) -> Asked:
    return Asked(prompt, np.empty((0, bundle.feature_width), np.float32))


def _transformers(source: Path, prompt: Prompt, tokens: list[int]) -> NDArray[np.float32]:
    """Logits before each of `tokens` and after the last."""
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt.token_ids, *tokens]])).logits[0]
    return np.asarray(logits[len(prompt.token_ids) - 1 :].numpy())


def _ids(source: Path, **choice: bool) -> list[int]:
    """The same two turns by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    contents = ("Hello there", "Hello. What is it?", QUESTION)
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), contents, strict=True)
    ]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **choice)
    return [int(token) for token in ids]


def test_ids_logits_and_greedy_tokens_are_transformers(source: Path, exact: Bundle) -> None:
    """Over two turns, whether the model is to think or not."""
    graph = Graph(exact, "fp32", length=256)
    prompts = [_prompt(exact, enable_thinking=choice) for choice in (None, True, False)]
    assert [list(prompt.token_ids) for prompt in prompts] == [
        _ids(source),
        _ids(source, enable_thinking=True),
        _ids(source, enable_thinking=False),
    ]
    assert prompts[0].token_ids == prompts[1].token_ids != prompts[2].token_ids
    for prompt in prompts[1:]:
        tokens, logits = graph.greedy(_asked(exact, prompt), TOKENS)
        expected = _transformers(source, prompt, tokens)
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        assert tokens == expected[:-1].argmax(-1).tolist()


def test_a_changed_rotation_is_seen(source: Path, exact: Bundle) -> None:
    """Negative control: with positions a step further apart the logits are others."""
    prompt = _prompt(exact)
    stretched = Prompt(
        prompt.token_ids, prompt.engine_token_ids, 2 * prompt.positions, (), prompt.inputs, prompt.media_tokens
    )
    (expected,) = _transformers(source, prompt, [])
    (right,) = Graph(exact, "fp32", length=256).led(_asked(exact, prompt), [])
    (wrong,) = Graph(exact, "fp32", length=256).led(_asked(exact, stretched), [])
    assert np.abs(right - expected).max() < 1e-4
    assert np.abs(wrong - expected).max() > 0.1


def test_the_bundle_has_no_encoder(exact: Bundle) -> None:
    """No folder and no fingerprint; what needs an encoder says so."""
    assert isinstance(exact.info, Qwen3Info)
    assert not exact.has_encoder
    assert not exact.vision_dir.exists()
    assert exact.encoder_fingerprint == ""
    assert exact.feature_width == exact.text.hidden_size == 64
    written = json.loads((exact.root / "bundle.json").read_text())
    assert not {"vision", "encoder_fingerprint", "encoder_types"} & written.keys()
    with pytest.raises(BundleError, match="takes text only and has no encoder"):
        vision_families.family_of(exact)
    exact.verify("decoder")


def test_onnxruntime_genai_gives_the_same_tokens(exact: Bundle) -> None:
    """The library takes the bundle, too, and computes positions itself."""
    prompt = _prompt(exact)
    tokens, _ = Graph(exact, "fp32", length=256).greedy(_asked(exact, prompt), TOKENS)
    model = og.Model(str(exact.decoder_dir))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt.token_ids) + TOKENS)
    generator = og.Generator(model, params)
    inputs = og.NamedTensors()
    inputs["input_ids"] = prompt.engine_token_ids[np.newaxis]
    inputs["pixel_values"] = np.empty((0, exact.feature_width), np.float32)
    for name, value in (prompt.inputs or {}).items():
        inputs[name] = value
    generator.set_inputs(inputs)
    for index, token in enumerate(tokens):
        assert int(np.asarray(generator.get_logits()).reshape(-1).argmax()) == token
        if index < TOKENS - 1:
            generator.append_tokens(np.array([token], np.int32))


def test_the_graph_is_that_of_the_vision_family(exact: Bundle, tmp_path: Path) -> None:
    """Node for node, where DeepStack has no level."""
    other = exporter.export(
        make_checkpoint(tmp_path / "checkpoint", deepstack=()), tmp_path / "bundle", precision="fp32"
    )

    def nodes(bundle: Bundle) -> list[tuple[str, str]]:
        graph = onnx.load(bundle.graph_path("fp32"), load_external_data=False).graph
        return [(node.op_type, node.name) for node in graph.node]

    assert nodes(exact) == nodes(other)


def test_int4_and_int8_are_near(source: Path, exact: Bundle) -> None:
    """Calibrated on the package's texts alone; the INT8 graph is nearer than the INT4 one."""
    bundle = exporter.export(source, source.parent / "int4", calibrate=True)
    assert bundle.decoder.calibration is not None
    prompt = _prompt(exact)
    tokens, logits = Graph(exact, "fp32", length=256).greedy(_asked(exact, prompt), TOKENS)
    int4, int8 = (
        kl_divergence(logits, Graph(bundle, name, length=256).led(_asked(bundle, prompt), tokens)).mean()
        for name in ("int4", "int8")
    )
    assert 0 < int8 < int4 < 0.5


def test_calibration_data_without_texts_are_refused(source: Path, tmp_path: Path) -> None:
    """Prompts with pictures are left out; if there are no others, the export says so before any work."""
    data = shutil.copytree(Path("demo/examples"), tmp_path / "data", ignore=shutil.ignore_patterns("*.mp4"))
    with pytest.raises(ExportError, match="takes text only"):
        exporter.export(source, tmp_path / "bundle", calibrate=data)
    assert not (tmp_path / "bundle").exists()


def test_sliding_windows_are_refused(source: Path, tmp_path: Path) -> None:
    """A window would be ignored by the graph."""
    changed = shutil.copytree(source, tmp_path / "checkpoint")
    config = json.loads((changed / "config.json").read_text())
    config |= {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="sliding windows"):
        exporter.export(changed, tmp_path / "bundle", precision="fp32")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"num_hidden_layers": 5},
            r"lacks model\.layers\.4\..*\(it has (lm_head|model\.(layers|embed_tokens|norm))\..*to Qwen3's published",
        ),
        ({"intermediate_size": 96}, r"^model\.layers\.0\.mlp\.\w+\.weight in .* has shape"),
    ],
)
def test_tensors_are_called_as_in_the_file(source: Path, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Messages have the published names, not those of the family with an encoder."""
    changed = shutil.copytree(source, tmp_path / "checkpoint")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ExportError, match=says) as caught:
        exporter.export(changed, tmp_path / "bundle", precision="fp32")
    assert "language_model" not in str(caught.value)
