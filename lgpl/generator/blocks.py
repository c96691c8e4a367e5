"""The blocks of the generator: pre-norm attention and SwiGLU, without biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lgpl.generator.rotary import rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # Under autocast every linear layer behind it would make and keep a cast copy of its own.
        device = x.device.type
        return y.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else y


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
    """SwiGLU (arXiv 2002.05202); the hidden width is 8/3 of dim, rounded up to a multiple of
    256."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        hidden = -(-int(8 * dim / 3) // 256) * 256
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(SwiGLU.apply(self.w1(x), self.w3(x))))


@dataclass
class LayerCache:
    """Keys and values of one layer, [B, heads, positions, head dim] each, written as they come."""

    keys: Tensor
    values: Tensor

    def update(self, position: Tensor, k: Tensor, v: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Write new positions; gives the first `seen`, them included."""
        if torch.compiler.is_compiling():  # for one shape, whatever the position is
            self.keys.index_copy_(2, position, k)
            self.values.index_copy_(2, position, v)
        else:  # a third of the time: they are the last of what is seen
            new = slice(seen - k.shape[2], seen)
            self.keys[:, :, new], self.values[:, :, new] = k, v
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class Attention(nn.Module):
    """Causal self-attention with rotary positions.

    With `qk_norm`, queries and keys are normalised for each head before they are rotated, which
    keeps the scores from growing (arXiv 2302.05442, section 2).
    """

    def __init__(self, dim: int, heads: int, dropout: float, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q_norm = RMSNorm(dim // heads) if qk_norm else None
        self.k_norm = RMSNorm(dim // heads) if qk_norm else None
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        mask: Tensor | None,
        cache: LayerCache | None,
        position: Tensor | None,
    ) -> Tensor:
        b, t, d = x.shape
        heads = self.wqkv(x).view(b, t, 3 * self.heads, d // self.heads)
        qk, v = heads.split((2 * self.heads, self.heads), dim=2)  # [B, T, H, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.chunk(2, dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = rotate(qk, rope).transpose(1, 2).chunk(2, dim=1)  # [B, H, T, D]
        if cache is None:
            # A view would keep q and k as they were before rotation for the backward pass, too.
            v = v.contiguous().transpose(1, 2)
        else:
            assert position is not None and mask is not None
            k, v = cache.update(position, k, v.transpose(1, 2), mask.shape[-1])
            # The CPU's kernel for one query takes two to five times as long in bf16.
            q, k, v = (x.to(mask.dtype) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = attended.to(x.dtype)
        return self.dropout(self.wo(x.transpose(1, 2).reshape(b, t, d)))


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training a residual branch is left out for a sample
    with probability `p`, and scaled by 1 / (1 - p) where it stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1), self.p)


class Block(nn.Module):
    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        drop_path: float = 0.0,
        qk_norm: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, dropout, qk_norm)
        self.ffn_norm = RMSNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.drop_path = DropPath(drop_path)
        self.recompute = recompute

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
        position: Tensor | None = None,
    ) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, rope, mask, cache, position, use_reentrant=False)
        return self._forward(x, rope, mask, cache, position)

    def _forward(
        self,
        x: Tensor,
        rope: Tensor,
        mask: Tensor | None,
        cache: LayerCache | None,
        position: Tensor | None,
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), rope, mask, cache, position)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.feed_forward(self.ffn_norm(x)))
