"""The family's entry for the registry of the vision service."""

from __future__ import annotations

import functools

from vision_service.families.qwen import settings
from vision_service.families.qwen.preprocess import fit_picture
from vision_service.families.qwen2_5_vl.encoder import Encoder
from vision_service.families.qwen2_5_vl.preprocess import Preprocessor
from vision_service.family import Family

settings_of = functools.partial(settings.settings_of, defaults=Preprocessor.DEFAULTS)
"""What a preprocessor file says; see `settings.settings_of`."""

QWEN2_5_VL = Family(load_encoder=Encoder.load, make_preprocessor=Preprocessor, fit_picture=fit_picture)
