"""The generator: a Llama decoder over image codes with a class or text prefix.

Design (LlamaGen, arXiv 2406.06525, section 2.3): pre-norm blocks with RMSNorm, SwiGLU without
biases, rotary positions in two dimensions (half of a head's dimension for rows, half for columns),
untied head that starts at zero. No Lightning here: use it in a notebook with torch.

The sequence is `prefix` positions of condition, then the codes in raster order; position i
predicts code i + 1 - prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lgpl.errors import UserError
from lgpl.generator.condition import ClassCondition, TextCondition

# name -> (layers, heads, dim)
SIZES: dict[str, tuple[int, int, int]] = {
    "B": (12, 12, 768),  # 111M
    "L": (24, 16, 1024),  # 343M
    "XL": (36, 20, 1280),  # 775M
    "XXL": (48, 24, 1536),  # 1.4B
    "XXXL": (48, 40, 2560),  # 3.9B
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),  # 3.1B
    "7B": (32, 32, 4096),
}


class Linear(nn.Linear):
    """A linear layer without bias, quick with few rows on CPUs, too.

    With the weight in front, 16 rows of 768 to 2304 take 0.8 times as long in bf16, and half as
    long in float32 (two cores with AMX); of one row, and in float32 of few, nothing is gained.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and not torch.is_grad_enabled():
            rows = x.flatten(0, -2)
            if (8 if x.dtype == torch.float32 else 2) <= len(rows) <= 32:
                product = self.weight @ rows.T
                return product.T.contiguous().unflatten(0, x.shape[:-1])
        return super().forward(x)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467), computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
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
        self.w1 = Linear(dim, hidden)
        self.w3 = Linear(dim, hidden)
        self.w2 = Linear(hidden, dim)
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
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(dim, 3 * dim)
        self.wo = Linear(dim, dim)
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
        q, k = rotate(qk, rope).transpose(1, 2).chunk(2, dim=1)  # [B, H, T, D]
        # A view of v would keep q and k as they were before rotation for the backward pass, too.
        v = v.contiguous().transpose(1, 2)
        if cache is not None:
            assert position is not None and mask is not None
            k, v = cache.update(position, k, v, mask.shape[-1])
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
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
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = Attention(dim, heads, dropout)
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


def rotary_table(
    prefix: int, grid: tuple[int, int], head_dim: int, prefix_rope: str, base: float = 10000.0
) -> Tensor:
    """cos and sin [prefix + rows * columns, head_dim / 2, 2] of rotary positions in two dimensions.

    The first half of the pairs turns with the row, the second with the column (arXiv 2104.09864,
    section 3.4.2, applied to each axis).

    Args:
        prefix: number of condition positions, which have no place in the grid.
        prefix_rope: `identity` leaves them unrotated; `zero` sets cos = sin = 0, as in LlamaGen's
            released weights, whose prefix queries and keys are therefore zero.
    """
    rows, columns = grid
    quarter = head_dim // 4
    frequencies = base ** (-torch.arange(quarter, dtype=torch.float32) * 2 / (head_dim // 2))
    row_angle = torch.outer(torch.arange(rows).float(), frequencies)[:, None].expand(
        -1, columns, -1
    )
    column_angle = torch.outer(torch.arange(columns).float(), frequencies).expand(rows, -1, -1)
    angle = torch.cat((row_angle, column_angle), dim=-1).flatten(0, 1)  # [N, head_dim / 2]
    table = torch.stack((angle.cos(), angle.sin()), dim=-1)
    head = torch.zeros(prefix, head_dim // 2, 2)
    if prefix_rope == "identity":
        head[..., 0] = 1.0
    return torch.cat((head, table))


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn the interleaved pairs of x [B, T, H, D] by rope [T, D/2, 2] or [B, T, D/2, 2]."""
    pairs, rope = x.float().unflatten(-1, (-1, 2)), rope.unsqueeze(-3)
    if torch.compiler.is_compiling():  # which fuses real products, and has no code for complex ones
        (a, b), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:  # one product where that takes six
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    return turned.flatten(-2).to(x.dtype)


def take(x: Tensor, position: Tensor) -> Tensor:
    """Of x [B, T, D] the positions [B, n] of each row, [B, n, D]."""
    row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (row + position).flatten()).view(*position.shape, -1)


class Transformer(nn.Module):
    """Predicts the codes of an image one after the other.

    Exactly one of `num_classes` and `text_features` says what the model is conditioned on.

    Args:
        size: a name of `SIZES` or (layers, heads, dim).
        codebook_size: number of codes.
        grid: rows and columns of codes.
        num_classes: classes of a class-conditional model.
        text_features: width of the text features of a text-conditional model.
        text_length: number of prefix tokens of a text-conditional model.
        dropout: on the outputs of attention and feed-forward.
        token_dropout: on the embeddings of prefix and codes.
        condition_dropout: probability of the null condition in training.
        drop_path: probability that the last block's branches are left out for a sample in training;
            it rises linearly from 0 at the first.
        trainable_null: see `TextCondition`.
        prefix_rope: see `rotary_table`.
        activation_checkpointing: keep only what stands between the blocks for the backward pass,
            and compute each block again there (arXiv 1604.06174): much less memory, a third more
            work.
    """

    def __init__(
        self,
        size: str | tuple[int, int, int] = "B",
        codebook_size: int = 16384,
        grid: tuple[int, int] = (16, 16),
        num_classes: int | None = None,
        text_features: int | None = None,
        text_length: int = 120,
        dropout: float = 0.1,
        token_dropout: float = 0.1,
        condition_dropout: float = 0.1,
        drop_path: float = 0.0,
        trainable_null: bool = True,
        prefix_rope: Literal["identity", "zero"] = "identity",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(size, str):
            if size not in SIZES:
                raise UserError(f"size: {size!r} is none of {', '.join(SIZES)}.")
            size = SIZES[size]
        layers, heads, dim = size
        if dim % heads or (dim // heads) % 4:
            raise UserError(
                f"size: dim {dim} over {heads} heads is {dim / heads:g}; a head's dimension must "
                "be a multiple of 4, half for rows and half for columns."
            )
        if (num_classes is None) == (text_features is None):
            raise UserError("Set exactly one of num_classes and text_features.")
        self.codebook_size = codebook_size
        self.grid = tuple(grid)
        self.heads, self.dim, self.prefix_rope = heads, dim, prefix_rope
        self.condition: ClassCondition | TextCondition
        if num_classes is not None:
            self.condition = ClassCondition(num_classes, dim, condition_dropout)
        else:
            assert text_features is not None
            self.condition = TextCondition(
                text_features, text_length, dim, condition_dropout, trainable_null
            )
        self.prefix_length = self.condition.length
        self.tok_embeddings = nn.Embedding(codebook_size, dim)
        self.token_dropout = nn.Dropout(token_dropout)
        paths = torch.linspace(0.0, drop_path, layers, device="cpu").tolist()
        self.layers = nn.ModuleList(
            Block(dim, heads, dropout, path, activation_checkpointing) for path in paths
        )
        self.norm = RMSNorm(dim)
        self.output = Linear(dim, codebook_size)
        table = rotary_table(self.prefix_length, grid, dim // heads, prefix_rope)
        self.register_buffer("rope", table, persistent=False)
        self.rope: Tensor
        self.apply(self._init)
        nn.init.zeros_(self.output.weight)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, 0.02)

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        """Moves and casts; the rotary table stays float32, whose angles bf16 would round."""
        table = self.rope
        super()._apply(fn, recurse)
        if self.rope.dtype != table.dtype:
            self.rope = table.to(self.rope.device)
        return self

    @property
    def code_count(self) -> int:
        """Codes of one image."""
        return self.grid[0] * self.grid[1]

    def hidden_matrices(self) -> tuple[list[Tensor], list[Tensor]]:
        """Matrices between embeddings and head, which Muon is made for, and all other
        parameters."""
        hidden = [
            m.weight for m in self.modules() if isinstance(m, nn.Linear) and m is not self.output
        ]
        known = {id(p) for p in hidden}
        others: list[Tensor] = [
            p for p in self.parameters() if p.requires_grad and id(p) not in known
        ]
        return hidden, others

    def forward(self, codes: Tensor, condition: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of all codes of an image at once, for training.

        Args:
            codes: [B, N] in raster order.
            condition: class labels [B], or text features [B, text_length, F], left-padded.
            lengths: number of real text positions [B]; None where nothing is padded.

        Returns:
            Logits [B, N, codebook_size]; those at i are for code i.
        """
        x = torch.cat((self.condition(condition), self.tok_embeddings(codes[:, :-1])), dim=1)
        x = self.token_dropout(x)
        rope, heads = self.rope[: x.shape[1]], slice(self.prefix_length - 1, None)
        if lengths is None:
            x = self._blocks(x, rope)[:, heads]
        else:
            # Each sequence is turned until its padding stands behind its last code, where a causal
            # query never looks. So the kernel is that of class models, which on GPUs is flash
            # attention only without a mask. FlexAttention has no backward on CPUs. On two cores, 4
            # layers of B's width in bf16, 120 + 256 take 0.87 to 0.93 times what a class model of
            # as many positions takes, whatever the lengths; with a mask 0.90 to 0.97.
            position = torch.arange(x.shape[1], device=x.device)
            # An empty caption keeps one position of padding, which predicts the first code.
            padding = (self.prefix_length - lengths).clamp(max=self.prefix_length - 1)[:, None]
            turned = (position + padding) % x.shape[1]  # [B, T]
            x = self._blocks(take(x, turned), self.rope[turned])
            x = take(x, position[heads] - padding)
        return self.output(self.norm(x))

    def _blocks(self, x: Tensor, rope: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, rope)
        return x

    def mask(self, lengths: Tensor, total: int) -> Tensor:
        """[B, 1, total, total], true where a query may see a key: causal, and padding is seen by
        itself only (so that no row is empty)."""
        position = torch.arange(total, device=lengths.device)
        real = position >= self.prefix_length - lengths[:, None]  # [B, total]
        causal = position[:, None] >= position
        itself = position[:, None] == position
        return (causal & real[:, None] | itself).unsqueeze(1)

    def step(self, x: Tensor, position: Tensor, mask: Tensor, cache: list[LayerCache]) -> Tensor:
        """Logits [B, codebook_size] after the last of some new positions, for sampling.

        Args:
            x: embeddings [B, T, dim] of the new positions.
            position: their places in the sequence [T].
            mask: [B or 1, 1, T, n], added to the scores of the first n positions.
            cache: one for each layer; the new keys and values are written into it.
        """
        rope = self.rope[position]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, rope, mask, layer_cache, position)
        return self.output(self.norm(x[:, -1]))
