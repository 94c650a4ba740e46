"""transformers' video processor of Qwen2-VL without torchvision, of whose module only the import is needed here."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest import mock

_NAME = "transformers.models.qwen2_vl.video_processing_qwen2_vl"


def video_processor() -> Any:
    """The class: its attributes and its rules for frames and sizes call nothing of torchvision."""
    names = (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.v2",
        "torchvision.transforms.v2.functional",
    )
    absent = {name: ModuleType(name) for name in names if name not in sys.modules}
    with mock.patch.dict(sys.modules, absent):
        module = importlib.import_module(_NAME)
    return module.Qwen2VLVideoProcessor
