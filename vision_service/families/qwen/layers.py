"""The parts of the encoders' layers that Qwen's families share: fused projections, and attention with rotations."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own abbreviation
from torch import Tensor, nn

from vision_service.families.tower import Runs
from vision_service.linear import Layer, MakeLayer
from vision_service.operators import Operators


def pair_up(make: MakeLayer, qkv: nn.Linear, norm: nn.Module, heads: int) -> Layer:
    """The projection to queries, keys and values, reordered so that each rotated pair of numbers is adjacent.

    A head's numbers j and j + half form one complex number, which a rotation multiplies by another. Queries and keys
    are reordered in the same way, so that their products do not change.
    """

    def reorder(rows: Tensor) -> Tensor:
        size = len(rows) // (3 * heads)
        split = rows.view(3, heads, 2, size // 2, -1)
        return torch.cat([split[:2].transpose(2, 3).flatten(0, 3), split[2].flatten(0, 2)]).view_as(rows)

    layer = make(reorder(qkv.weight), reorder(qkv.bias), norm)
    qkv.weight = None  # type: ignore[assignment]  # as in `take`
    return layer


def attend(projected: Tensor, turns: Tensor, runs: Runs, heads: int, operators: Operators | None) -> Tensor:
    """Attention in which each row attends to the rows of its group.

    Args:
        projected: Queries, keys and values [rows, 3 x heads x width], with each rotated pair adjacent.
        turns: complex64 [rows, width / 2]: rotations of the pairs of queries and keys.
        runs: The groups.
        heads: Number of heads.
        operators: Our own operators; None: PyTorch's attention.

    Returns:
        [rows, heads x width].
    """
    if operators is not None:
        return operators.attend(projected, turns, runs, heads)
    count = len(projected)
    qkv = projected.view(count, 3, heads, -1)
    # This also makes each head's rows adjacent: attention over rows 12 KiB apart is a tenth slower.
    pairs = torch.view_as_complex(qkv[:, :2].float().view(count, 2, heads, -1, 2)).permute(1, 2, 0, 3)
    turned = torch.empty(pairs.shape, dtype=pairs.dtype, device=pairs.device)
    torch.mul(pairs, turns, out=turned)
    query, key = torch.view_as_real(turned).flatten(-2).to(projected.dtype)  # [heads, rows, width] each
    value = qkv[:, 2].transpose(0, 1).contiguous()
    outs, start = [], 0
    for size, groups in runs:
        stop = start + size * groups
        q, k, v = (  # [groups, heads, size, width]
            one[:, start:stop].view(heads, groups, size, -1).transpose(0, 1) for one in (query, key, value)
        )
        outs.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(size * groups, -1))
        start = stop
    return outs[0] if len(outs) == 1 else torch.cat(outs)
