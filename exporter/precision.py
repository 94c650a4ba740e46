"""What a decoder is exported at."""

from typing import Literal

Precision = Literal["fp32", "int4"]
"""What a bundle is exported at."""

Phase = Literal["int4", "int8"]
"""The graphs of an INT4 bundle: the small one, and the one that computes in 8 bits."""
