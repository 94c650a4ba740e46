"""Tiny random checkpoints of Phi-4-multimodal in both layouts, and transformers' own model of them.

transformers without PEFT has no adapters: the reference for requests with images has them merged, W + s · B · A.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

ORIGINAL = 64
"""Tokens up to which the rotation has the short factors."""

IMAGE = "<|endoftext10|>"
_SPECIAL = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", IMAGE, "<|endoftext11|>")
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
# The published template takes text, which has a numbered name for each image; transformers' own takes parts.
_TEMPLATES = {
    "published": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}"
        "{{ '<|end|>' }}"
        "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "native": """
{%- for message in messages -%}
  {{- '<|' + message['role'] + '|>' -}}
  {%- if message['content'] is string -%}{{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}{{- part.text if part.type == 'text' else '<|endoftext10|>' -}}{%- endfor -%}
  {%- endif -%}
  {{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
""".strip(),
}
_TARGETS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")

Layout = Literal["published", "native"]


def make_phi4(
    folder: Path,
    layout: Layout,
    *,
    seed: int = 3,
    layers: int = 3,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 192,
    context: int = 256,
    original: int = ORIGINAL,
    rank: int = 6,
    alpha: int = 9,
    targets: Sequence[str] = _TARGETS,
    initializer_range: float = 0.12,
    vision: Mapping[str, Any] | None = None,
    dynamic_hd: int = 6,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a checkpoint into `folder` and return it.

    "published" is the layout of the published files: `Phi4MMForCausalLM` with both adapters inside. "native" is that
    of transformers' class, with the adapter of `targets` in a folder of PEFT; without targets there is none. What an
    export is not to read is NaN. `vision` changes fields of the encoder's config.
    """
    tokenizer = _tokenizer()
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in _SPECIAL}
    pairs = hidden // heads * 3 // 8
    growing = [1 + 3 * index / pairs for index in range(pairs)]
    config = Phi4MultimodalConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        original_max_position_embeddings=original,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|endoftext|>"], ids["<|end|>"]],
        pad_token_id=ids["<|endoftext|>"],
        sliding_window=2 * context,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1_000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1 + 0.1 * index for index in range(pairs)],
            "long_factor": growing,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 56,
            "crop_size": 56,
            "patch_size": 14,
            "image_token_id": ids[IMAGE],
            **(vision or {}),
        },
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
            "audio_token_id": ids["<|endoftext11|>"],
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Phi4MultimodalForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
        adapters = {
            name: _adapter(matrix, rank, initializer_range)
            for name, matrix in model.named_modules()
            if any(name.endswith(target) for target in targets) and ".layers." in name and "embed_tokens" not in name
        }
    for name, parameter in model.named_parameters():
        if "audio_embed" in name:
            parameter.data.fill_(torch.nan)  # an export that reads it fails
        if name.endswith("_feature_extensor"):  # zeros otherwise
            parameter.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        elif "img_pro" in name and parameter.dim() > 1:  # transformers draws them so wide that attention is one-hot
            spread = 1.5 / parameter[0].numel() ** 0.5
            parameter.data.normal_(std=spread, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    model.to(dtype).save_pretrained(folder)
    adapters = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in adapters.items()}
    if layout == "published":
        _publish(folder, adapters, rank, alpha)
    elif adapters:
        _write_peft(folder / "vision-lora", adapters, rank, alpha)
    _write_texts(folder, tokenizer, ids, context, _TEMPLATES[layout])
    _write_preprocessor(folder, config.vision_config, dynamic_hd)
    return folder


def reference(folder: Path, *, adapted: bool, scale: float | None = None) -> Any:
    """The model of a checkpoint of layout "native" in transformers and float32, with its adapter merged or without.

    Args:
        folder: the checkpoint.
        adapted: whether to merge.
        scale: of the adapter, instead of its own.
    """
    model: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    if adapted:
        config = json.loads((folder / "vision-lora" / "adapter_config.json").read_text())
        own = config["lora_alpha"] / config["r"] if scale is None else scale
        tensors = load_file(folder / "vision-lora" / "adapter_model.safetensors")
        for name, a in tensors.items():
            if ".lora_A." in name:
                b = tensors[name.replace(".lora_A.", ".lora_B.")]
                matrix = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
                matrix.weight.data += own * b.float() @ a.float()
    return model


def _adapter(matrix: Any, rank: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs = matrix.weight.shape
    return torch.randn(rank, inputs) * spread, torch.randn(outputs, rank) * spread


def _publish(folder: Path, adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]], rank: int, alpha: int) -> None:
    """Rewrite a checkpoint as the published one is."""
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    rope = config.pop("rope_parameters")
    config |= {
        "model_type": "phi4mm",
        "architectures": ["Phi4MMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_scaling": {"type": "longrope", **{key: rope[key] for key in ("short_factor", "long_factor")}},
        "embd_layer": {
            "embedding_cls": "image_audio",
            "image_embd_layer": {"crop_size": vision["crop_size"], "use_hd_transform": True},
            "audio_embd_layer": {"embedding_cls": "audio"},
        },
        "audio_processor": {"name": "cascades", "config": {}},
        "img_processor": None,
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "vision_lora": {"r": rank, "lora_alpha": alpha, "dp": 0.0, "layer": "layers.*"},
        "speech_lora": {"r": rank, "lora_alpha": 2 * alpha, "dp": 0.01, "layer": "layers.*"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        base = name.removesuffix(".weight")
        if base not in adapters:
            renamed[_published_name(name)] = tensor
            continue
        renamed[f"{base}.base_layer.weight"] = tensor
        for half, values in zip("AB", adapters[base], strict=True):
            renamed[f"{base}.lora_{half}.vision.weight"] = values.contiguous()
            renamed[f"{base}.lora_{half}.speech.weight"] = torch.full_like(values.contiguous(), torch.nan)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def _published_name(name: str) -> str:
    for pattern, replacement in (
        (r"global_img_feature_extensor$", "glb_GN"),
        (r"sub_img_feature_extensor$", "sub_GN"),
        (r"img_projection_up\.", "img_projection.0."),
        (r"img_projection_down\.", "img_projection.2."),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _write_peft(folder: Path, adapters: Mapping[str, tuple[torch.Tensor, torch.Tensor]], rank: int, alpha: int) -> None:
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in adapters}),
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.{name}.lora_{half}.weight": values.contiguous()
        for name, halves in adapters.items()
        for half, values in zip("AB", halves, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _write_texts(folder: Path, tokenizer: Tokenizer, ids: Mapping[str, int], context: int, template: str) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    generation = {"eos_token_id": [ids["<|end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def _write_preprocessor(folder: Path, vision: Any, dynamic_hd: int) -> None:
    image = {
        "image_processor_type": "Phi4MultimodalImageProcessorFast",
        "processor_class": "Phi4MultimodalProcessor",
        "size": {"height": vision.crop_size, "width": vision.crop_size},
        "patch_size": vision.patch_size,
        "dynamic_hd": dynamic_hd,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image))


def _tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer with a token for each byte and the control tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    return tokenizer
