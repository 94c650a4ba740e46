"""`bundle.json`: what the services learn about a model without opening it."""

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

from exporter.families.qwen3_vl.checkpoint import Checkpoint
from exporter.families.qwen3_vl.genai import edge
from exporter.families.qwen3_vl.vision import write_json
from serving.bundle import FORMAT, FORMAT_VERSION, MANIFEST, sha256_file

from .progress import Progress

_PACKAGES = (
    "huggingface-hub",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-genai",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
# What determines an encoder's features: these fields of its config, its weights and how its input is prepared. Fields
# are named so that a later transformers, which may write more of them, does not change a fingerprint.
_ENCODER_FIELDS = (
    "depth",
    "hidden_size",
    "hidden_act",
    "intermediate_size",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "out_hidden_size",
    "num_position_embeddings",
    "deepstack_visual_indexes",
)
_ENCODER_FILES = (
    "vision/model.safetensors",
    "vision/preprocessor_config.json",
    "vision/video_preprocessor_config.json",
)


def write_manifest(
    checkpoint: Checkpoint, root: Path, *, model_id: str, decoder: dict[str, Any], progress: Progress
) -> None:
    """Digest every file under `root` and write its `bundle.json`."""
    files = _digests(root, progress)
    config, text, vision = checkpoint.config, checkpoint.text, checkpoint.vision
    generation = checkpoint.generation_config
    write_json(
        root / MANIFEST,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": {"id": model_id, "family": "qwen3_vl", "parameters": checkpoint.parameters},
            "text": {
                "hidden_size": text.hidden_size,
                "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads,
                "num_key_value_heads": text.num_key_value_heads,
                "head_dim": text.head_dim,
                "vocab_size": text.vocab_size,
                "max_position_embeddings": text.max_position_embeddings,
                "mrope_section": checkpoint.mrope_section,
                "tie_word_embeddings": config.tie_word_embeddings,
            },
            "vision": {
                "depth": vision.depth,
                "hidden_size": vision.hidden_size,
                "patch_size": edge(vision.patch_size),
                "temporal_patch_size": edge(vision.temporal_patch_size),
                "spatial_merge_size": vision.spatial_merge_size,
                "in_channels": vision.in_channels,
                "deepstack_visual_indexes": list(vision.deepstack_visual_indexes),
            },
            "tokens": {
                "image": config.image_token_id,
                "video": config.video_token_id,
                "vision_start": config.vision_start_token_id,
                "vision_end": config.vision_end_token_id,
                "eos": _as_list(generation["eos_token_id"]),
                "pad": generation.get("pad_token_id"),
            },
            "decoder": decoder,
            "encoder_fingerprint": _encoder_fingerprint(vision, files),
            "files": files,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "triptych_version": _version("triptych"),
            "versions": {package: _version(package) for package in _PACKAGES},
        },
    )


def add_encoder_types(root: Path, types: Mapping[str, Mapping[str, float]]) -> None:
    """Write what the encoder's types cost into the `bundle.json` under `root`."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    write_json(root / MANIFEST, {**manifest, "encoder_types": types})


def _digests(root: Path, progress: Progress) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    files = {}
    with progress.bar("digests", total=sum(path.stat().st_size for path in paths), unit="B") as advance:
        for path in paths:
            size = path.stat().st_size
            files[path.relative_to(root).as_posix()] = {"size": size, "sha256": sha256_file(path)}
            advance(size)
    return files


def _encoder_fingerprint(vision: Qwen3VLVisionConfig, files: dict[str, dict[str, Any]]) -> str:
    fields = {name: getattr(vision, name) for name in _ENCODER_FIELDS}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in _ENCODER_FILES:
        digest.update(files[name]["sha256"].encode())
    return digest.hexdigest()


def _as_list(ids: int | list[int]) -> list[int]:
    return [ids] if isinstance(ids, int) else list(ids)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
