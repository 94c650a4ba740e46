"""Tiny random checkpoints of every family, written the way published ones are.

Their weights mean nothing, but they are drawn wide enough that logits differ clearly from token to token, so that a
wrong graph, a wrong position or a dropped feature map shows. Every dimension that an implementation might hard-code
can be set.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tests import templates

# Tokens that the tokenizer marks as special, and the ones that are single tokens yet ordinary text, as in Qwen3-VL.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_MERGES = "Ġ t,h e,i n,Ġ a,e r,o n,r e,Ġt he,a t,e n,o r,Ġ s,Ġ w,i t,i s,o u,Ġ i,in g,Ġ c,a n,e d,Ġ o,Ġ b,e s"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_RENDER = r"""
{%- macro render(content, seen) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
        {%- set seen.images = seen.images + 1 -%}
        {%- if add_vision_id -%}{{- 'Picture ' ~ seen.images ~ ': ' -}}{%- endif -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'video' or 'video' in part -%}
        {%- set seen.videos = seen.videos + 1 -%}
        {%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
        {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
      {%- elif 'text' in part -%}{{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
"""
"""The content of a message: text, or parts."""

# Renders what the published template renders: content as text or parts, system, tools, tool calls and results.
CHAT_TEMPLATE = (
    _RENDER
    + r"""
{%- set seen = namespace(images=0, videos=0) -%}
{%- set system = render(messages[0].content, seen) if messages[0].role == 'system' else none -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if system is not none -%}{{- system ~ '\n\n' -}}{%- endif -%}
  {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
  {%- for tool in tools -%}{{- '\n' -}}{{- tool | tojson -}}{%- endfor -%}
  {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' -}}
{%- elif system is not none -%}
  {{- '<|im_start|>system\n' ~ system ~ '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<|im_start|>user\n' ~ render(message.content, seen) ~ '<|im_end|>\n' -}}
  {%- elif message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\n' ~ render(message.content or '', seen) -}}
    {%- for call in message.tool_calls or [] -%}
      {%- if not loop.first or message.content -%}{{- '\n' -}}{%- endif -%}
      {%- set called = call.function or call -%}
      {{- '<tool_call>\n{"name": "' ~ called.name ~ '", "arguments": ' -}}
      {%- if called.arguments is string -%}{{- called.arguments -}}{%- else -%}{{- called.arguments | tojson -}}{%- endif -%}
      {{- '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' ~ render(message.content, seen) ~ '\n</tool_response>' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""  # noqa: E501 - the sentences of the published template, one line each
).lstrip()

# Renders what the published template of Qwen2.5-VL renders: a system prompt of its own, and no tools.
QWEN2_5_TEMPLATE = (
    _RENDER
    + r"""
{%- set seen = namespace(images=0, videos=0) -%}
{%- for message in messages -%}
  {%- if loop.first and message.role != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' ~ message.role ~ '\n' -}}
  {{- render(message.content, seen) -}}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
).lstrip()


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 2,
    deepstack: Sequence[int] = (0, 1, 2),
    head_dim: int = 32,
    mrope_section: Sequence[int] = (6, 5, 5),
    tie: bool = True,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vision_depth: int = 4,
    vision_hidden: int = 64,
    context: int = 4096,
    attention_bias: bool = False,
    rope_theta: float = 1_000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    initializer_range: float = 0.25,
    dialect: Literal["v5", "v4"] = "v5",
    dtype: torch.dtype = torch.float32,
    shard_size: str = "5GB",
    template: str = CHAT_TEMPLATE,
) -> Path:
    """Write a checkpoint into `folder` and return it.

    `rope_theta` is small so that the few positions of a test's prompt reach most of a head's frequencies: with the
    published 5,000,000, another `mrope_section` would change nothing that a test could see. `dialect` is the config's:
    "v5" has `rope_parameters`, "v4" has the published files' `rope_theta` and `rope_scaling`. `rope_scaling` is added
    to the rotation's parameters. `shard_size` is as transformers reads it ("100KB" makes several files and an index).
    `template` is the chat template.
    """
    tokenizer = make_tokenizer()
    ids = {token: _id(tokenizer, token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            # A few rows more than there are tokens, as published models have.
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-6,
            "attention_bias": attention_bias,
            "initializer_range": initializer_range,
            "tie_word_embeddings": tie,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": list(mrope_section),
                "mrope_interleaved": True,
                **(rope_scaling or {}),
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "num_heads": 4,
            "intermediate_size": 2 * vision_hidden,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 64,
            "out_hidden_size": hidden,
            "deepstack_visual_indexes": list(deepstack),
            "initializer_range": initializer_range,
        },
        tie_word_embeddings=tie,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    _random_model(Qwen3VLForConditionalGeneration, config, seed, dtype).save_pretrained(
        folder, max_shard_size=shard_size
    )
    if dialect == "v4":
        to_v4_dialect(folder)
    _write_json(folder / "preprocessor_config.json", _processor("image", shortest=64 * 64, longest=192 * 192))
    _write_json(folder / "video_preprocessor_config.json", _processor("video", shortest=2 * 64 * 64, longest=192 * 192))
    _write_texts(folder, tokenizer, context, template)
    return folder


def make_qwen2_5_vl(
    folder: Path,
    *,
    seed: int = 2,
    mrope_section: Sequence[int] = (4, 6, 6),
    tie: bool = True,
    layers: int = 4,
    hidden: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vision_depth: int = 4,
    vision_hidden: int = 64,
    vision_heads: int = 4,
    window: int = 112,
    full_attention: Sequence[int] = (1, 3),
    tokens_per_second: int = 2,
    context: int = 4096,
    rope_theta: float = 1_000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    initializer_range: float = 0.15,
    vision_initializer_range: float = 0.25,
    dialect: Literal["v5", "published"] = "v5",
    dtype: torch.dtype = torch.float32,
    template: str = QWEN2_5_TEMPLATE,
) -> Path:
    """Write a checkpoint of Qwen2.5-VL into `folder` and return it.

    "published" is the dialect of the published files: the language model's settings at the top of the config, tensors
    by transformers 4's names, image settings alone, the template in tokenizer_config.json. The language model is drawn
    less wide than Qwen3-VL's, since nothing normalizes its queries and keys. Else as `make_checkpoint`.
    """
    tokenizer = make_tokenizer()
    ids = {token: _id(tokenizer, token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": context,
            "rms_norm_eps": 1e-6,
            "initializer_range": initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": rope_theta,
                "mrope_section": list(mrope_section),
                **(rope_scaling or {}),
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden,
            "num_heads": vision_heads,
            "intermediate_size": 2 * vision_hidden - 4,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "tokens_per_second": tokens_per_second,
            "window_size": window,
            "fullatt_block_indexes": list(full_attention),
            "out_hidden_size": hidden,
            "initializer_range": vision_initializer_range,
        },
        tie_word_embeddings=tie,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    _random_model(Qwen2_5_VLForConditionalGeneration, config, seed, dtype).save_pretrained(folder)
    image = _processor("image", shortest=56 * 56, longest=196 * 196, patch=14, label="Qwen2_5_VLProcessor")
    video = _processor("video", shortest=56 * 56, longest=112 * 112, patch=14, label="Qwen2_5_VLProcessor")
    _write_texts(folder, tokenizer, context, template)
    if dialect == "published":
        to_published_dialect(folder, image)
    else:
        _write_json(folder / "preprocessor_config.json", image)
        _write_json(folder / "video_preprocessor_config.json", video)
    return folder


def make_qwen3(
    folder: Path,
    *,
    seed: int = 2,
    head_dim: int = 32,
    tie: bool = True,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    context: int = 4096,
    rope_theta: float = 1_000.0,
    rope_scaling: Mapping[str, Any] | None = None,
    initializer_range: float = 0.25,
    dialect: Literal["v5", "published"] = "v5",
    dtype: torch.dtype = torch.float32,
    template: str = templates.OPTIONAL,
) -> Path:
    """Write a checkpoint of Qwen3, which takes text only, into `folder` and return it.

    "published" is the dialect of the published files: `rope_theta` and `rope_scaling` in the config, the template in
    tokenizer_config.json. Else as `make_checkpoint`.
    """
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        initializer_range=initializer_range,
        tie_word_embeddings=tie,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta, **(rope_scaling or {})},
        bos_token_id=_id(tokenizer, "<|endoftext|>"),
        eos_token_id=_id(tokenizer, "<|im_end|>"),
    )
    _random_model(Qwen3ForCausalLM, config, seed, dtype).save_pretrained(folder)
    _write_texts(folder, tokenizer, context, template)
    if dialect == "published":
        written = json.loads((folder / "config.json").read_text())
        rope = written.pop("rope_parameters")
        written["rope_theta"] = rope.pop("rope_theta")
        written["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        written["torch_dtype"] = written.pop("dtype")
        written |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": layers}
        del written["layer_types"]
        _write_json(folder / "config.json", written)
        _move_template(folder)
    return folder


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {"qwen3_vl": make_checkpoint, "qwen2_5_vl": make_qwen2_5_vl}
"""The families with an encoder: each makes a checkpoint of one shape. `tests/families/run` has more shapes."""


def _write_texts(folder: Path, tokenizer: Tokenizer, context: int, template: str) -> None:
    """Write tokenizer, template and generation settings."""
    ids = {token: _id(tokenizer, token) for token in SPECIAL_TOKENS}
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, context))
    (folder / "chat_template.jinja").write_text(template)
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
        },
    )


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer like Qwen's: a token for each byte, two dozen merges, the control tokens."""
    merges = [(left, right) for left, right in (merge.split() for merge in _MERGES.split(","))]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in PLAIN_TOKENS])
    return tokenizer


def to_v4_dialect(folder: Path) -> None:
    """Rewrite a checkpoint's config.json the way transformers 4.57 wrote the published ones."""
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = rope
    config["vision_config"].pop("rope_parameters", None)
    config["vision_config"]["model_type"] = "qwen3_vl"
    config["transformers_version"] = "4.57.0.dev0"
    _write_json(folder / "config.json", config)


def to_published_dialect(folder: Path, image: Mapping[str, Any]) -> None:
    """Rewrite a checkpoint of Qwen2.5-VL as the published ones are, whose image settings have bounds beside `size`."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = {"type": "mrope" if rope.pop("rope_type") == "default" else "yarn", **rope}
    for name in ("model_type", "dtype", "layer_types", "sliding_window"):
        text.pop(name, None)
    vision = config["vision_config"]
    vision.pop("rope_parameters", None)
    vision["model_type"] = "qwen2_5_vl"
    vision["in_chans"] = vision.pop("in_channels")
    vision["spatial_patch_size"] = vision["patch_size"]
    config |= {**text, "use_sliding_window": False, "transformers_version": "4.41.2"}
    _write_json(folder / "config.json", config)
    tensors = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    bounds = {"min_pixels": image["size"]["shortest_edge"], "max_pixels": image["size"]["longest_edge"]}
    kept = {name: value for name, value in image.items() if name != "size"}
    _write_json(
        folder / "preprocessor_config.json", {**kept, **bounds, "image_processor_type": "Qwen2VLImageProcessor"}
    )
    _move_template(folder)


def _move_template(folder: Path) -> None:
    """Move the chat template into tokenizer_config.json."""
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    template = folder / "chat_template.jinja"
    _write_json(folder / "tokenizer_config.json", {**tokenizer, "chat_template": template.read_text()})
    template.unlink()


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return int(found)


def _random_model(kind: Any, config: Any, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which otherwise are ones and zeros and could be dropped unseen
                parameter.data += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return model.to(dtype).eval()


def _tokenizer_config(tokenizer: Tokenizer, context: int) -> dict[str, Any]:
    added = [(token, True) for token in SPECIAL_TOKENS] + [(token, False) for token in PLAIN_TOKENS]
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": special,
            }
            for token, special in added
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": context,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "unk_token": None,
    }


def _processor(
    medium: Literal["image", "video"],
    *,
    shortest: int,
    longest: int,
    patch: int = 16,
    label: Literal["Qwen3VLProcessor", "Qwen2_5_VLProcessor"] = "Qwen3VLProcessor",
) -> dict[str, Any]:
    kind = "image_processor_type" if medium == "image" else "video_processor_type"
    of_video = "Qwen3VLVideoProcessor" if label == "Qwen3VLProcessor" else "Qwen2VLVideoProcessor"
    plain = label == "Qwen3VLProcessor"
    return {
        kind: "Qwen2VLImageProcessorFast" if medium == "image" else of_video,
        "processor_class": label,
        "size": {"shortest_edge": shortest, "longest_edge": longest},
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5] if plain else OPENAI_CLIP_MEAN,
        "image_std": [0.5, 0.5, 0.5] if plain else OPENAI_CLIP_STD,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
