"""A Hugging Face checkpoint in, a bundle out: `export` is all there is to call."""

import os

# ONNX Runtime reports its use to its makers unless it is told otherwise before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


from exporter.families.qwen3_vl.decoder import Phase, Precision

from .errors import ExportError
from .pipeline import export

__all__ = ["ExportError", "Phase", "Precision", "export"]
