"""Splits pixels into patches, in the order in which the encoder merges them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def patchify(
    frames: NDArray[np.uint8], *, patch_size: int, temporal_patch_size: int, merge_size: int
) -> NDArray[np.uint8]:
    """Split frames into patches, as transformers' `patchify` does.

    The last frame is repeated until the frames fill whole temporal patches; an image is a video of one frame.

    Args:
        frames: [frames, height, width, channels]; height and width are multiples of patch_size x merge_size.
        patch_size: Side of a patch, in pixels.
        temporal_patch_size: Frames of a patch.
        merge_size: Side of a block of patches that the encoder merges, in patches.

    Returns:
        [t x h x w, channels, temporal_patch_size, patch_size, patch_size], the blocks of merge x merge patches one
        after another.
    """
    count, height, width, channels = frames.shape
    missing = -count % temporal_patch_size
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    t, h, w = len(frames) // temporal_patch_size, height // patch_size, width // patch_size
    rows, columns = (h // merge_size, merge_size, patch_size), (w // merge_size, merge_size, patch_size)
    cut = frames.reshape(t, temporal_patch_size, *rows, *columns, channels)
    # (t, block row, block column, row, column, channel, frame, y, x)
    ordered = cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered).reshape(t * h * w, channels, temporal_patch_size, patch_size, patch_size)
