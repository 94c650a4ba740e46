"""`bundle.json`: what the services need to know of a model before they load it."""

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.bundle import FORMAT, FORMAT_VERSION, MANIFEST, Bundle, sha256_file

from .family import Checkpoint
from .json_files import write_json
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
# With fields of the encoder's config, these determine its features.
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
    fingerprint = {}
    if checkpoint.has_encoder:
        fingerprint["encoder_fingerprint"] = _encoder_fingerprint(checkpoint.encoder_fields(), files)
    write_json(
        root / MANIFEST,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": {"id": model_id, "family": checkpoint.family, "parameters": checkpoint.parameters},
            **checkpoint.describe(),
            "decoder": decoder,
            **fingerprint,
            "files": files,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "triptych_version": _version("triptych"),
            "versions": {package: _version(package) for package in _PACKAGES},
        },
    )


def draft(checkpoint: Checkpoint, root: Path) -> Bundle:
    """The bundle that is being made under `root`, for who needs its encoder and its tokenizer and no graph."""
    return Bundle.unfinished(
        root,
        {
            "model": {"id": checkpoint.root.name or "draft", "family": checkpoint.family, "parameters": 1},
            **checkpoint.describe(),
            "encoder_fingerprint": "0" * 64,
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


def _encoder_fingerprint(fields: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for name in filter(files.__contains__, _ENCODER_FILES):
        digest.update(files[name]["sha256"].encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
