"""The blocks of the generator: pre-norm attention with rotary positions in two dimensions, half of
a head's dimension for rows and half for columns, and SwiGLU; without biases."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lgpl.codes import CodeLayout


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return for_products(super().forward(x.to(self.weight.dtype)))


def for_products(x: Tensor) -> Tensor:
    """Under autocast in its dtype: or every linear layer behind would make and keep a cast copy."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up; keeps its inputs alone for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202), within 8/3 as wide as dim, rounded up to a multiple of 256."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(8 * dim / 3) // 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(SwiGLU.apply(self.w1(x), self.w3(x))))


def rotary_table(prefix: int, layout: CodeLayout, head_dim: int, prefix_rope: str) -> Tensor:
    """cos and sin [prefix + codes, D / 2, 2] for heads of dimension D.

    The first half of the pairs turns with the row, the second with the column (arXiv 2104.09864,
    section 3.4.2, applied to each axis); all codes of a place have its position.

    Args:
        prefix: number of condition positions, which have no place in the grid.
        prefix_rope: `identity` leaves them unrotated; `zero` sets cos = sin = 0, as in LlamaGen's
            released weights, whose prefix queries and keys are therefore zero.
    """
    half = head_dim // 2
    frequencies = 10000.0 ** (-torch.arange(half // 2, dtype=torch.float32) * 2 / half)
    row = torch.arange(layout.rows).repeat_interleave(layout.columns)  # of each place
    column = torch.arange(layout.columns).repeat(layout.rows)
    angle = (torch.stack((row, column), dim=1)[..., None] * frequencies).flatten(1)  # [N, D / 2]
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    head = torch.zeros(prefix, half, 2)
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


class LayerCache(NamedTuple):
    """Of one layer, written as they come: [B, heads, positions, head dim] each."""

    keys: Tensor
    values: Tensor


Cache = list[LayerCache]


class Past(NamedTuple):
    """What the T new positions of B sequences see in one layer while they are drawn."""

    cache: LayerCache
    position: Tensor  # of the new ones in the sequence [T], or [B, T] in each row's
    mask: Tensor  # [B or 1, 1, T, n], in the cache's dtype, added to the scores of the first n

    def update(self, k: Tensor, v: Tensor) -> LayerCache:
        """Write keys and values of the new positions; gives the first n, them included."""
        (keys, values), seen = self.cache, self.mask.shape[-1]
        k, v = k.to(keys.dtype), v.to(keys.dtype)
        if self.position.dim() == 2:
            row = torch.arange(len(k), device=k.device)[:, None]
            keys[row, :, self.position] = k.transpose(1, 2)
            values[row, :, self.position] = v.transpose(1, 2)
        elif torch.compiler.is_compiling():  # for one shape, whatever the position is
            keys.index_copy_(2, self.position, k)
            values.index_copy_(2, self.position, v)
        else:  # a third of the time: they are the last of what is seen
            new = slice(seen - k.shape[2], seen)
            keys[:, :, new], values[:, :, new] = k, v
        return LayerCache(keys[:, :, :seen], values[:, :, :seen])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries, keys and values [B, H, T, D] of the new positions see, [B, H, T, D]."""
        k, v = self.update(k, v)
        return F.scaled_dot_product_attention(q.to(k.dtype), k, v, self.mask)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; with `qk_norm` each head normalises queries and
    keys before, which keeps the scores from growing (arXiv 2302.05442, section 2)."""

    def __init__(self, dim: int, heads: int, dropout: float, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm = RMSNorm(dim // heads) if qk_norm else None
        self.k_norm = RMSNorm(dim // heads) if qk_norm else None
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rope: Tensor, past: Past | None) -> Tensor:
        b, t, d = x.shape
        heads = self.wqkv(x).view(b, t, 3 * self.heads, d // self.heads)
        qk, v = heads.split((2 * self.heads, self.heads), dim=2)  # [B, T, H, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.chunk(2, dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = rotate(qk, rope).transpose(1, 2).chunk(2, dim=1)  # [B, H, T, D]
        if past is None:
            # A view would keep q and k as they were before rotation for the backward pass, too.
            v = v.contiguous().transpose(1, 2)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            attended = past.attend(q, k, v.transpose(1, 2))
        return self.dropout(self.wo(attended.to(x.dtype).transpose(1, 2).reshape(b, t, d)))


class DropPath(nn.Dropout):
    """Stochastic depth (arXiv 1603.09382): in training a residual branch is left out for a sample
    with probability `p`, and scaled by 1 / (1 - p) where it stays."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * super().forward(x.new_ones(len(x), 1, 1))


class Block(nn.Module):
    def __init__(
        self, dim: int, heads: int, dropout: float, drop_path: float, qk_norm: bool, recompute: bool
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, dropout, qk_norm)
        self.ffn_norm = RMSNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.drop_path = DropPath(drop_path)
        self.recompute = recompute

    def forward(self, x: Tensor, rope: Tensor, past: Past | None = None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, rope, past, use_reentrant=False)
        return self._forward(x, rope, past)

    def _forward(self, x: Tensor, rope: Tensor, past: Past | None) -> Tensor:
        x = x + self.drop_path(self.attention(self.attention_norm(x), rope, past))
        return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))
