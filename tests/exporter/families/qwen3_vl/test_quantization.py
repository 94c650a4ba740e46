"""Weights in blocks of few bits: what they are rounded to, and the graph they are in."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime_genai.models.builders.qwen import Qwen3VLTextModel
from transformers import Qwen3VLConfig

import exporter
from exporter.quantize import PackedLinear, pack_blocks
from exporter.recipe import Bits
from serving.bundle import Bundle
from tests.exporter.families.qwen3_vl.reference import Exported, Reference, last_logits

Nodes = dict[str, tuple[dict[str, Any], list[NDArray[Any]]]]


def _quantized_nodes(path: Path) -> Nodes:
    """Each MatMulNBits node's attributes and constant inputs, by the name of the MatMul it came from."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {
        node.name.removesuffix("_Q4").removesuffix("NBits"): (
            {attribute.name: helper_value(attribute) for attribute in node.attribute},
            [constants[name] for name in node.input if name in constants],
        )
        for node in graph.node
        if node.op_type == "MatMulNBits"
    }


def helper_value(attribute: onnx.AttributeProto) -> Any:
    """An attribute's value."""
    return onnx.helper.get_attribute_value(attribute)


def _unpacked(packed: PackedLinear) -> NDArray[np.float32]:
    """The weights [out_features, in_features] that a packed matrix stands for."""
    integers: NDArray[Any] = packed.qweight
    if packed.bits == 4:
        integers = np.stack([integers & 15, integers >> 4], axis=-1).reshape(*packed.scales.shape, -1)
    values = (integers.astype(np.float32) - 2 ** (packed.bits - 1)) * packed.scales[..., None]
    return np.asarray(values.reshape(packed.out_features, -1)[:, : packed.in_features])


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_the_nodes_are_the_builders_own(checkpoint: Path, tmp_path: Path) -> None:
    """Attributes, names and shapes are what onnxruntime-genai's builder makes; its scales are of another method."""
    small = exporter.export(checkpoint, tmp_path / "small", recipe="small", phases=["int4"])
    config = Qwen3VLConfig.from_pretrained(checkpoint)
    config._name_or_path = str(checkpoint)
    options = {"exclude_embeds": True, "prune_lm_head": True, "block_size": 32, "accuracy_level": 4, "hf_token": False}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        builder = Qwen3VLTextModel(config, ir.DataType.FLOAT, ir.DataType.INT4, "cpu", str(tmp_path), options)
        builder.make_model(str(checkpoint))
        builder.save_model(str(tmp_path))
    theirs = _quantized_nodes(tmp_path / "model.onnx")
    ours = _quantized_nodes(small.graph_path("int4"))
    assert len(ours) == 7 * small.text.num_hidden_layers + 1
    assert ours.keys() == theirs.keys()
    for name, (attributes, constants) in ours.items():
        assert attributes == theirs[name][0], name
        assert attributes["bits"] == 4
        for mine, other in zip(constants, theirs[name][1], strict=True):
            assert (mine.dtype, mine.shape) == (other.dtype, other.shape), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("in_features", [256, 80])
def test_packing_in_parts_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, bits: Bits, block_size: int, in_features: int
) -> None:
    """Blocks are quantized by themselves, on any number of threads, also with a short last block."""
    weight, importance = _weight(50, in_features), np.linspace(0, 1, in_features, dtype=np.float32)
    for given in (None, importance):
        monkeypatch.undo()
        whole = pack_blocks(weight, bits=bits, block_size=block_size, importance=given)
        monkeypatch.setattr("exporter.quantize._ROWS", 23)
        monkeypatch.setattr("exporter.quantize._BLOCKS", 16)
        monkeypatch.setattr("exporter.quantize.usable_cores", lambda: 3)
        parts = pack_blocks(weight, bits=bits, block_size=block_size, importance=given)
        np.testing.assert_array_equal(parts.qweight, whole.qweight)
        np.testing.assert_array_equal(parts.scales, whole.scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_close(bits: Bits) -> None:
    """Unpacked as documented, weights that are not cut off are within half a step, and a block of zeros is zero."""
    weight = _weight(64, 256)
    weight[3, 32:64] = 0
    packed = pack_blocks(weight, bits=bits, block_size=32)
    restored, exact = _unpacked(packed), weight.float().numpy()
    step = np.abs(packed.scales).repeat(32, axis=1)
    inside = np.abs(exact) <= (2 ** (bits - 1) - 1) * step
    assert inside.mean() > 0.9
    assert (np.abs(restored - exact)[inside] <= 0.501 * step[inside]).all()
    assert not restored[3, 32:64].any()
    assert (packed.scales < 0).any()
    assert (packed.scales > 0).any()


def test_scales_have_least_squared_error() -> None:
    """Less than round to nearest by a tenth, and not more by a hundredth than the best of a thousand scales."""
    weight = _weight(100, 320)
    packed = pack_blocks(weight, bits=4, block_size=32)
    blocks = weight.float().numpy().reshape(-1, 32)

    def error(scale: NDArray[np.float32]) -> NDArray[np.float32]:
        steps = np.clip(np.rint(blocks / scale[:, None]), -8, 7)
        return np.asarray(((steps * scale[:, None] - blocks) ** 2).sum(1))

    end = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)[:, 0]
    best = np.min([error(sign * end / steps) for sign in (-1, 1) for steps in np.linspace(5, 12, 500)], axis=0)
    ours = ((_unpacked(packed).reshape(-1, 32) - blocks) ** 2).sum(1)
    assert ours.sum() < 0.9 * error(end / -8).sum()
    assert ours.sum() < 1.01 * best.sum()


def test_weights_on_the_grid_are_kept() -> None:
    """Where round to nearest loses nothing, neither does the search: a model may be trained for it."""
    steps = torch.randint(-8, 8, (64, 320), generator=torch.Generator().manual_seed(0)).float()
    steps[:, ::32] = -8
    packed = pack_blocks(steps * 2**-6, bits=4, block_size=32)
    np.testing.assert_array_equal(_unpacked(packed), steps.numpy() * 2**-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_importance_decides_whose_error_is_small(bits: Bits) -> None:
    """An input that is a thousand times as important is met more closely, at the cost of the others."""
    weight, importance = _weight(300, 64), np.ones(64, np.float32)
    importance[[5, 40]] = 1e3

    def errors(given: NDArray[np.float32] | None) -> NDArray[np.float32]:
        restored = _unpacked(pack_blocks(weight, bits=bits, block_size=32, importance=given))
        return np.asarray(((restored - weight.float().numpy()) ** 2).mean(0))

    plain, weighted = errors(None), errors(importance)
    assert weighted[[5, 40]].sum() < 0.5 * plain[[5, 40]].sum()
    assert weighted @ importance < 0.8 * plain @ importance
    assert weighted.sum() >= plain.sum()
    np.testing.assert_allclose(errors(np.zeros(64, np.float32)).sum(), plain.sum(), rtol=0.5)


def test_the_int4_decoder_stays_near_float32(int4_bundle: Bundle, fp32_bundle: Bundle, checkpoint: Path) -> None:
    """With an image in the prompt, INT4 logits follow the float32 ones (random weights round badly)."""
    reference = Reference(checkpoint)
    prompt = reference.prompt("What is in the picture?", images=[(4, 6)])
    features = reference.features(prompt)
    exact, rounded = (
        last_logits(Exported(bundle.decoder_dir).start(prompt, features)) for bundle in (fp32_bundle, int4_bundle)
    )
    assert np.corrcoef(exact, rounded)[0, 1] > 0.7
    assert not np.array_equal(exact, rounded)
