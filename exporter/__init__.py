"""A Hugging Face checkpoint in, a bundle out: `export` is all there is to call."""

import os

# ONNX Runtime reports its use to its makers unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


from .errors import ExportError
from .pipeline import export
from .precision import Phase, Precision
from .recipe import RECIPES, Recipe, RecipeName

__all__ = ["RECIPES", "ExportError", "Phase", "Precision", "Recipe", "RecipeName", "export"]
