"""The encoder's part of a bundle: its tensors alone, byte for byte, and its settings."""

import json
import struct
from pathlib import Path
from typing import Any

from exporter.progress import Progress
from exporter.weights import TensorRef

from .checkpoint import VISION_PREFIX, Checkpoint


def write_vision(checkpoint: Checkpoint, folder: Path, *, progress: Progress) -> None:
    """Write the encoder's weights, config and preprocessor settings into `folder`."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", checkpoint.config.to_dict())
    write_json(folder / "preprocessor_config.json", checkpoint.image_processor)
    write_json(folder / "video_preprocessor_config.json", checkpoint.video_processor)
    tensors = {
        name.removeprefix(VISION_PREFIX): ref
        for name, ref in checkpoint.tensors.items()
        if name.startswith(VISION_PREFIX)
    }
    _copy_tensors(tensors, folder / "model.safetensors", progress)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object for people to read too."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_tensors(tensors: dict[str, TensorRef], path: Path, progress: Progress) -> None:
    """Write a safetensors file from raw bytes: no dtype is touched and no tensor held."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest dtypes first keeps every tensor aligned to its own size, as the format's own writer does.
    ordered = sorted(tensors.items(), key=lambda item: (item[1].dtype != "F32", item[0]))
    for name, ref in ordered:
        header[name] = {"dtype": ref.dtype, "shape": list(ref.shape), "data_offsets": [end, end + ref.size]}
        end += ref.size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file, progress.bar("vision tensors", total=end, unit="B") as advance:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for _, ref in ordered:
            for chunk in ref.chunks():
                file.write(chunk)
                advance(len(chunk))
