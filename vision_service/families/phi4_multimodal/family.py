"""The family's entry for the registry of the vision service."""

from __future__ import annotations

from vision_service.families.phi4_multimodal.encoder import Encoder
from vision_service.families.phi4_multimodal.encoder import used_layers as used_layers  # noqa: PLC0414  # re-exported
from vision_service.families.phi4_multimodal.preprocess import Preprocessor, fit_picture
from vision_service.families.phi4_multimodal.settings import settings_of as settings_of  # noqa: PLC0414  # re-exported
from vision_service.family import Family

PHI4_MULTIMODAL = Family(load_encoder=Encoder.load, make_preprocessor=Preprocessor, fit_picture=fit_picture)
