"""INT4 made weight by weight is the INT4 that the builder makes of a whole model."""

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
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime_genai.models.builders.qwen import Qwen3VLTextModel
from transformers import Qwen3VLConfig

from exporter.quantize import pack_int4
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


def test_equal_to_the_builders_own_int4(int4_bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """Every packed weight and every scale is bit-equal, and the attributes are the same."""
    config = Qwen3VLConfig.from_pretrained(checkpoint)
    config._name_or_path = str(checkpoint)
    options = {"exclude_embeds": True, "prune_lm_head": True, "block_size": 32, "accuracy_level": 4, "hf_token": False}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
        builder = Qwen3VLTextModel(config, ir.DataType.FLOAT, ir.DataType.INT4, "cpu", str(tmp_path), options)
        builder.make_model(str(checkpoint))
        builder.save_model(str(tmp_path))
    theirs = _quantized_nodes(tmp_path / "model.onnx")
    ours = _quantized_nodes(int4_bundle.graph_path("int4"))
    assert len(ours) == 7 * int4_bundle.text.num_hidden_layers + 1
    assert ours.keys() == theirs.keys()
    for name, (attributes, constants) in ours.items():
        assert attributes == theirs[name][0], name
        assert attributes["bits"] == 4
        for mine, other in zip(constants, theirs[name][1], strict=True):
            assert mine.dtype == other.dtype, name
            np.testing.assert_array_equal(mine, other, err_msg=name)


@pytest.mark.parametrize("block_size", [32, 128])
@pytest.mark.parametrize("in_features", [256, 80])
def test_packing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch, block_size: int, in_features: int) -> None:
    """Output features quantized a few at a time give what the whole matrix gives, also with a short last block."""
    monkeypatch.setattr("exporter.quantize._ROWS", 7)
    weight = torch.randn(50, in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = pack_int4(weight, block_size=block_size)
    settings = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True)
    whole = np.ascontiguousarray(weight.float().numpy().T)
    qweight, scales, _ = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(whole)
    np.testing.assert_array_equal(packed.qweight, qweight)
    np.testing.assert_array_equal(packed.scales, scales)


def test_packed_weights_are_close(int4_bundle: Bundle) -> None:
    """Unpacked as documented, (nibble - 8) times scale, the weights are within half a step of the original."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    packed = pack_int4(weight, block_size=32)
    nibbles = np.stack([packed.qweight & 15, packed.qweight >> 4], axis=-1).reshape(64, 8, 32).astype(np.int32)
    restored = ((nibbles - 8) * packed.scales[..., None]).reshape(64, 256)
    step = np.abs(packed.scales).repeat(32, axis=1)
    # The far end of the range holds one step less on one side, so a block's extreme may be off by a whole step.
    assert (np.abs(restored - weight.numpy()) <= step * 1.001).all()
    assert np.abs(restored - weight.numpy()).mean() < step.mean() / 3


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
