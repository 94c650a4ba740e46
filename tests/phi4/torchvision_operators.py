"""Declares two operators of torchvision, so that it can be imported beside a PyTorch for which it was not compiled.

At import it registers their shapes. The image processor calls neither of them.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")  # it must live as long as the declarations
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
