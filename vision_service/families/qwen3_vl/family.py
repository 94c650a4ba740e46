"""The family's entry for the registry of the vision service."""

from __future__ import annotations

from vision_service.families.qwen3_vl.encoder import Encoder
from vision_service.families.qwen3_vl.preprocess import Preprocessor, fit_picture
from vision_service.family import Family

QWEN3_VL = Family(load_encoder=Encoder.load, make_preprocessor=Preprocessor, fit_picture=fit_picture)
