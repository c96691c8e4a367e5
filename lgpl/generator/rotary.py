"""Rotary positions in two dimensions: half of a head's dimension for rows, half for columns."""

import torch
from torch import Tensor

from lgpl.codes import CodeLayout


def rotary_table(
    prefix: int, layout: CodeLayout, head_dim: int, prefix_rope: str, base: float = 10000.0
) -> Tensor:
    """cos and sin [prefix + codes, D / 2, 2] for heads of dimension D.

    The first half of the pairs turns with the row, the second with the column (arXiv 2104.09864,
    section 3.4.2, applied to each axis); all codes of a place have its position.

    Args:
        prefix: number of condition positions, which have no place in the grid.
        prefix_rope: `identity` leaves them unrotated; `zero` sets cos = sin = 0, as in LlamaGen's
            released weights, whose prefix queries and keys are therefore zero.
    """
    frequencies = base ** (-torch.arange(head_dim // 4, dtype=torch.float32) * 2 / (head_dim // 2))
    row = torch.arange(layout.rows).repeat_interleave(layout.columns)  # of each place
    column = torch.arange(layout.columns).repeat(layout.rows)
    angle = (torch.stack((row, column), dim=1)[..., None] * frequencies).flatten(1)  # [N, D / 2]
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    head = torch.zeros(prefix, head_dim // 2, 2)
    if prefix_rope == "identity":
        head[..., 0] = 1.0
    return torch.cat((head, table.repeat_interleave(layout.depth, dim=0)))


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [B, T, H, D] by rope [T, D/2, 2] or [B, T, D/2, 2]."""
    pairs, rope = x.float().unflatten(-1, (-1, 2)), rope.unsqueeze(-3)
    if torch.compiler.is_compiling():  # which fuses real products, and has no code for complex ones
        (a, b), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:  # one product where that takes six
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    return turned.flatten(-2).to(x.dtype)
