"""The encoder's part of a bundle: its tensors alone, byte for byte, and its settings."""

from pathlib import Path

from exporter.json_files import write_json
from exporter.progress import Progress
from exporter.weights import copy_tensors

from .checkpoint import VISION_PREFIX, Checkpoint


def write_vision(checkpoint: Checkpoint, folder: Path, *, progress: Progress) -> None:
    """Write the encoder's weights, config and preprocessor settings into `folder`, if there is an encoder."""
    if checkpoint.variant.encoder is None:
        return
    folder.mkdir(parents=True)
    write_json(folder / "config.json", checkpoint.config.to_dict())
    files = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
    for kind, settings in checkpoint.processors.items():
        write_json(folder / files[kind], settings)
    tensors = {
        name.removeprefix(VISION_PREFIX): ref
        for name, ref in checkpoint.tensors.items()
        if name.startswith(VISION_PREFIX)
    }
    copy_tensors(tensors, folder / "model.safetensors", progress)
