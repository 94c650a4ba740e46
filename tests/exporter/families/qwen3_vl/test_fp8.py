"""FP8 checkpoints are read as transformers reads them, to the last bit."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import exporter
from exporter import ExportError
from exporter.weights import Tensors
from serving.bundle import Bundle
from tests.checkpoints import make_checkpoint

BLOCK = (32, 16)  # small, so that a matrix has several in both directions
FP8 = torch.float8_e4m3fn
GREATEST = torch.finfo(FP8).max


def _quantize(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 numbers and bfloat16 scales, as the published FP8 checkpoints have them."""
    rows, columns = (-(-side // edge) for side, edge in zip(weight.shape, block, strict=True))
    padded = torch.zeros(rows * block[0], columns * block[1])
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.view(rows, block[0], columns, block[1])
    scales = (blocks.abs().amax(dim=(1, 3)) / GREATEST).clamp(min=1e-6).to(torch.bfloat16)
    numbers = (blocks / scales.float()[:, None, :, None]).clamp(-GREATEST, GREATEST)
    return numbers.view(padded.shape)[: weight.shape[0], : weight.shape[1]].to(FP8).contiguous(), scales


def _make(source: Path, root: Path, *, block: tuple[int, int] | None = BLOCK) -> tuple[Path, Path]:
    """The FP8 form of a checkpoint, by blocks or with one scale for each matrix, and its float32 form."""
    fp8, plain = shutil.copytree(source, root / "fp8"), shutil.copytree(source, root / "plain")
    state, quantized, exact = load_file(source / "model.safetensors"), {}, {}
    for name, weight in state.items():
        if not (name.startswith("model.language_model.layers.") and weight.dim() == 2):
            quantized[name] = exact[name] = weight
            continue
        edges = block or tuple(weight.shape)
        numbers, scales = _quantize(weight.float(), edges)
        ending = "weight_scale_inv" if block else "weight_scale"
        quantized[name] = numbers
        quantized[f"{name.removesuffix('weight')}{ending}"] = scales if block else scales.reshape(())
        exact[name] = Fp8Dequantize(SimpleNamespace())._dequantize_one(numbers, scales, torch.float32)
    save_file(quantized, fp8 / "model.safetensors")
    save_file(exact, plain / "model.safetensors")
    config = json.loads((fp8 / "config.json").read_text())
    said: dict[str, Any] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    config["quantization_config"] = said | ({"weight_block_size": list(block)} if block else {})
    (fp8 / "config.json").write_text(json.dumps(config))
    return fp8, plain


def _decoder(bundle: Bundle) -> dict[str, str]:
    return {name: info.sha256 for name, info in bundle.files.items() if name.endswith((".onnx", ".onnx.data"))}


@pytest.mark.parametrize("block", [BLOCK, None], ids=["blocks", "one scale"])
def test_the_bundle_is_that_of_what_transformers_reads(
    checkpoint: Path, tmp_path: Path, block: tuple[int, int] | None
) -> None:
    """Both graphs are byte for byte those of the checkpoint that transformers' own dequantization gives."""
    fp8, plain = _make(checkpoint, tmp_path, block=block)
    bundle = exporter.export(fp8, tmp_path / "bundle")
    assert _decoder(bundle) == _decoder(exporter.export(plain, tmp_path / "of-plain"))
    assert "quantization_config" not in json.loads((bundle.decoder_dir / "config.json").read_text())
    # Control: the rounding to FP8 is in the bundle.
    assert _decoder(bundle) != _decoder(exporter.export(checkpoint, tmp_path / "of-source"))


def test_published_blocks_and_their_borders(tmp_path: Path) -> None:
    """Blocks of 128 x 128 that do not fill the matrix, any rows of it, and its bytes in pieces."""
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    numbers, scales = _quantize(weight, (128, 128))
    save_file({"a.weight": numbers, "a.weight_scale_inv": scales.float()}, tmp_path / "model.safetensors")
    ref = Tensors.open(tmp_path).dequantized((128, 128))["a.weight"]
    grown = scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :300]
    expected = numbers.float() * grown
    assert torch.equal(ref.read(), expected)
    torch.testing.assert_close(expected, weight, atol=1e-2, rtol=1 / 14)  # FP8 has three bits of mantissa
    assert torch.equal(ref.read(slice(120, 140)), expected[120:140])
    assert b"".join(ref.chunks(5000)) == expected.numpy().tobytes()
    assert (ref.shape, ref.dtype, ref.size) == ((200, 300), "F32", 4 * 200 * 300)


def test_blocks_of_another_size(checkpoint: Path, tmp_path: Path) -> None:
    """Scales that are not of the blocks which the config names are refused; so is FP8 without scales."""
    fp8, _ = _make(checkpoint, tmp_path)
    config = json.loads((fp8 / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = [64, 64]
    (fp8 / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"weight_scale_inv in .* only FP8 with one scale for each block or tensor"):
        exporter.export(fp8, tmp_path / "out")
    state = load_file(fp8 / "model.safetensors")
    save_file({n: t for n, t in state.items() if not n.endswith("scale_inv")}, fp8 / "model.safetensors")
    with pytest.raises(ExportError, match=r"is stored as F8_E4M3"):
        exporter.export(fp8, tmp_path / "out")


def test_a_quantized_head_and_encoder(tmp_path: Path) -> None:
    """Every matrix may be FP8: the encoder's are written as float32, the head is read in pieces."""
    source = make_checkpoint(tmp_path / "source", tie=False)
    state = load_file(source / "model.safetensors")
    for name in ("lm_head.weight", "model.visual.blocks.0.attn.qkv.weight"):
        state[name], state[name.replace("weight", "weight_scale_inv")] = _quantize(state[name], (128, 128))
    save_file(state, source / "model.safetensors")
    bundle = exporter.export(source, tmp_path / "bundle", phases=["int4"])
    encoder = load_file(bundle.vision_dir / "model.safetensors")
    assert encoder["blocks.0.attn.qkv.weight"].dtype == torch.float32
    assert not [name for name in encoder if "scale" in name]
