"""Sizes that the demo model takes."""

from __future__ import annotations

PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE = 16, 2, 2
# Limits on height x width after resizing, in pixels: 16 to 36 merged tokens for a square image.
SHORTEST_EDGE, LONGEST_EDGE = 128 * 128, 192 * 192
MIN_FRAMES, MAX_FRAMES = 4, 8
CONTEXT_LENGTH = 4096
