"""The tensors of a checkpoint by the exporter's names: merged matrices apart, the adapter beside them, no audio.

Nothing is read: matrices are parts of the rows of a stored tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Phi4MultimodalForCausalLM

from exporter.families.shared.adapter import ADAPTER, UP
from exporter.families.shared.checkpoint import EMBEDDING, LM_HEAD, TEXT_PREFIX, VISION_PREFIX
from exporter.json_files import read_json
from exporter.progress import quiet
from exporter.weights import MultipliedRef, TensorRef, Tensors

from . import published
from .adapter import Adapted, Halves, divide, read_folder, read_inside
from .targets import unsupported

MODEL = "Phi-4-multimodal"
"""In sentences about one model."""

_NATIVE_EMBEDDING = "model.embed_tokens.weight"
_NATIVE_VISION = "model.embed_tokens_extend.image_embed."
_AUDIO = "model.embed_tokens_extend.audio_embed."
_LAYER = re.compile(r"model\.(layers\.\d+\.)(.+)")
_ALL = slice(None)


def open_tensors(root: Path, config: Any) -> Tensors:
    """Index the tensors of the checkpoint in directory `root`.

    Raises:
        ExportError: one is missing or has another shape, or the adapter is not supported.
    """
    path = root / "config.json"
    raw = read_json(path)
    stored = Tensors({name: ref for name, ref in Tensors.open(root).items() if _AUDIO not in name})
    halves: Halves = {}
    is_published = raw.get("model_type") == published.MODEL_TYPE
    if is_published:
        stored = stored.without_prefix(_NATIVE_EMBEDDING, root, merged=False)
        stored, halves = divide(stored)
        stored = stored.renamed(published.present_name)
    stored = stored.without_prefix(_NATIVE_EMBEDDING, root)
    shapes = _shapes(config)
    stored.require(
        {name: shape for name, shape in shapes.items() if name != LM_HEAD},
        root,
        stored=published.published_name if is_published else str,
        model=MODEL,
    )
    layers = config.num_hidden_layers
    adapted = read_inside(halves, raw, path, layers) if is_published else read_folder(root, layers)
    refs: dict[str, TensorRef] = {}
    for name, ref in ((name, stored[name]) for name in shapes if name in stored):
        for part, rows in parts(config, name).items():
            refs[part] = ref.part(*rows.indices(ref.shape[0])[:2])
    for name, adapter in adapted.items():
        refs |= dict(_of_adapter(config, name, adapter, shapes))
    return Tensors(refs)


def parts(config: Any, name: str) -> Mapping[str, slice]:
    """The exporter's names for a tensor of transformers' class, and which of its rows each has; none of audio's."""
    if name.startswith(_AUDIO):
        return {}
    if name.startswith(_NATIVE_VISION):
        return {VISION_PREFIX + name.removeprefix(_NATIVE_VISION): _ALL}
    found = _LAYER.fullmatch(name)
    if found is None:
        known = {LM_HEAD: LM_HEAD, _NATIVE_EMBEDDING: EMBEDDING}
        return {known.get(name, TEXT_PREFIX + name.removeprefix("model.")): _ALL}
    prefix, rest = TEXT_PREFIX + found[1], found[2]
    width, half = config.hidden_size // config.num_attention_heads, config.intermediate_size
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    apart = {
        "self_attn.qkv_proj.weight": {
            "self_attn.q_proj.weight": slice(0, queries),
            "self_attn.k_proj.weight": slice(queries, queries + keys),
            "self_attn.v_proj.weight": slice(queries + keys, queries + 2 * keys),
        },
        "mlp.gate_up_proj.weight": {
            "mlp.gate_proj.weight": slice(0, half),
            "mlp.up_proj.weight": slice(half, 2 * half),
        },
    }
    return {prefix + part: rows for part, rows in apart.get(rest, {rest: _ALL}).items()}


def _of_adapter(
    config: Any, name: str, adapter: Adapted, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, TensorRef]]:
    """The names of an adapter's A, and of B's rows for each matrix that the checkpoint stores as one."""
    matrix = f"{name}.weight"
    outputs, inputs = shapes[matrix]
    if (adapter.up.shape[0], adapter.down.shape[1]) != (outputs, inputs):
        shapes_found = f"A and B have shapes {list(adapter.down.shape)} and {list(adapter.up.shape)}"
        raise unsupported(adapter.down.file, f"{shapes_found} beside {name}, whose shape is {[outputs, inputs]}")
    of_a = name.removesuffix("_proj").removeprefix("model.") + ADAPTER
    yield f"{TEXT_PREFIX}{of_a}.weight", adapter.down
    for part, rows in parts(config, matrix).items():
        first, last, _ = rows.indices(outputs)
        yield f"{part.removesuffix('.weight')}.{UP}", MultipliedRef.of(adapter.up.part(first, last), adapter.scale)


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Of the tensors of transformers' class that are needed, by their names there."""
    with quiet(), torch.device("meta"):
        state = Phi4MultimodalForCausalLM(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.startswith(_AUDIO)}
