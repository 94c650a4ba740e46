"""Calibration data: pictures and prompts that are read before rounding, so that it errs where a model looks least."""

from .data import CalibrationData, built_in, read_directory
from .tokens import encode

__all__ = ["CalibrationData", "built_in", "encode", "read_directory"]
