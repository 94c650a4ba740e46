"""A Hugging Face checkpoint in, a bundle out: `export` is all there is to call."""

from .decoder import Precision
from .errors import ExportError
from .pipeline import export

__all__ = ["ExportError", "Precision", "export"]
