"""The parallel generator: a Transformer that predicts any codes together, in any order.

Design (LPD, arXiv 2507.01957, section 3.2): pre-norm blocks with LayerNorm, biases and GELU;
learned positions. What is known stands in the sequence as codes, which are never asked for
anything; what is asked for stands in it as queries: one shared vector, at the position of the code.

The sequence is `prefix` positions of condition, the codes of all groups, then the queries of all
groups. A code's place in the sequence says when it is drawn, its position where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lgpl.errors import UserError
from lgpl.generator.blocks import Cache, LayerCache, Past, for_products
from lgpl.generator.conditions import Condition, Inputs
from lgpl.generator.decoders import Decoder, Parallel
from lgpl.generator.decoders.groups import group_sizes, numbered, training_steps
from lgpl.generator.loss import cross_entropy
from lgpl.generator.model import Model
from lgpl.generator.transformer import known_codes, known_size


class LayerNorm(nn.LayerNorm):
    """Computed in the dtype of its weights."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return for_products(super().forward(x.to(self.weight.dtype)))


class Mask(NamedTuple):
    """What the C positions of context and the N queries behind them see, true where they do."""

    context: Tensor  # [C, C] of itself, or [B, 1, C, C]
    queries: Tensor  # [N, C + N] of everything, or [B, 1, N, C + N]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of queries, keys and values [B, H, C + N, D].

        In two parts, because context never sees queries: forward and backward take two thirds of
        the time of one call with the whole mask, on a CPU at 512 positions. FlexAttention, whose
        forward pass is as fast there, has no backward.
        """
        c = self.context.shape[-1]
        known = F.scaled_dot_product_attention(q[:, :, :c], k[:, :, :c], v[:, :, :c], self.context)
        asked = F.scaled_dot_product_attention(q[:, :, c:], k, v, self.queries)
        return torch.cat((known, asked), dim=2)


class Attention(nn.Module):
    """Self-attention of what each position sees, among the others or in a cache."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(dim, 3 * dim)
        self.wo = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Mask | Past) -> Tensor:
        b, t, d = x.shape
        heads = self.wqkv(x).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, D] each
        attended = seen.attend(q, k, v)
        return self.dropout(self.wo(attended.to(x.dtype).transpose(1, 2).reshape(b, t, d)))


class FeedForward(nn.Module):
    """GELU, four times as wide as dim."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, 4 * dim)
        self.w2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.gelu(self.w1(x))))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float, recompute: bool) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.ffn_norm = LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)
        self.recompute = recompute

    def forward(self, x: Tensor, seen: Mask | Past) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, seen, use_reentrant=False)
        return self._forward(x, seen)

    def _forward(self, x: Tensor, seen: Mask | Past) -> Tensor:
        x = x + self.attention(self.attention_norm(x), seen)
        return x + self.feed_forward(self.ffn_norm(x))


class ParallelTransformer(Model):
    """Predicts groups of an image's codes, in training of random orders and sizes.

    Args:
        condition: builds what the model is conditioned on, given its width.
        size: a name of `SIZES` or (layers, heads, dim).
        codebook_size, grid, depth: as for `Transformer`.
        dropout: on the outputs of attention and feed-forward.
        steps: in which its decoder draws an image where nothing else is said.
        activation_checkpointing: compute each block again in the backward pass (arXiv 1604.06174).
    """

    def __init__(
        self,
        condition: Callable[[int], Condition],
        size: str | tuple[int, int, int] = "L",
        codebook_size: int | None = None,
        grid: tuple[int, int] | None = None,
        depth: int | None = None,
        dropout: float = 0.1,
        steps: int = 20,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        layers, heads, dim = known_size(size)
        if dim % heads:
            raise UserError(f"size: dim {dim} is no multiple of {heads} heads.")
        if steps < 1:
            raise UserError(f"steps must be >= 1, got {steps}")
        codebook_size, self.layout = known_codes(codebook_size, grid, depth)
        self.codebook_size, self.heads, self.dim, self.steps = codebook_size, heads, dim, steps
        self.condition = condition(dim)
        self.prefix_length = self.condition.length
        if self.prefix_length < 1:
            has = f"condition: {type(self.condition).__name__} has a prefix of length 0"
            raise UserError(f"{has}; the first codes are predicted from at least 1 position.")
        self.tok_embeddings = nn.Embedding(self.layout.depth * codebook_size, dim)
        self.positions = nn.Parameter(torch.empty(self.prefix_length + self.layout.codes, dim))
        self.query = nn.Parameter(torch.empty(dim))
        self.input_norm = nn.LayerNorm(dim, eps=1e-6)  # the sum of the branches stays float32
        blocks = (Block(dim, heads, dropout, activation_checkpointing) for _ in range(layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = LayerNorm(dim)
        self.output = nn.Linear(dim, codebook_size, bias=False)
        sizes = (self._sizes(number) for number in training_steps(self.layout))
        table = torch.tensor([numbered(own) for own in sizes])  # [schedules, N]
        self.register_buffer("schedules", table, persistent=False)
        self.schedules: Tensor
        self._batch = -1, 0  # the last one's step, and its number in it
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for parameter in (self.positions, self.query):
            nn.init.normal_(parameter, 0.0, 0.02)
        nn.init.zeros_(self.output.weight)

    def _sizes(self, steps: int) -> list[int]:
        return group_sizes(self.layout, self.layout.codes, min(steps, self.layout.codes))

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    def hidden_matrices(self) -> list[Tensor]:
        """Those between embeddings and head, with the condition's."""
        linear = [m for m in self.modules() if isinstance(m, nn.Linear) and m is not self.output]
        return [m.weight for m in linear]

    def decoder(self) -> Decoder:
        return Parallel(self.steps)

    def check_start(self, other: Model, source: object) -> None:
        if not isinstance(other, ParallelTransformer):
            kind = type(other).__name__
            raise UserError(f"{source} holds a {kind}, which is no ParallelTransformer.")
        for name in ("heads", "layout"):  # what shapes do not show
            found, wanted = getattr(other, name), getattr(self, name)
            if found != wanted:
                apart = f"{name} {found}, but the config's transformer has {wanted}"
                raise UserError(f"{source} was trained with {apart}; give it {found}.")

    def loss(self, codes: Tensor, inputs: Inputs, step: int) -> Tensor:
        """In training of a random order of each image, and of a schedule of group sizes that all
        images share; else of the order and sizes in which the decoder draws some one image."""
        if self.training:
            rng, device = self._orders(step, codes.device), codes.device
            # All schedules have one shape, so that ranks need not agree on one.
            chosen = torch.randint(len(self.schedules), (1,), generator=rng, device=device)
            group = self.schedules[chosen].squeeze(0)
            order = torch.rand(codes.shape, generator=rng, device=device).argsort(dim=-1)
        else:
            order, group = (part.to(codes.device) for part in self._as_drawn)
            order = order.expand_as(codes)
        codes = codes.gather(1, order)
        logits = self(codes, inputs, order, group)
        return cross_entropy(logits.flatten(0, 1), codes.flatten()).view(codes.shape).mean(1)

    def _orders(self, step: int, device: torch.device) -> torch.Generator:
        """What draws a batch's orders: of the run's seed, the rank, the step and the number of the
        batch in it alone, so that a run that goes on draws the same."""
        last, number = self._batch
        self._batch = step, number + 1 if step == last else 0
        rank = dist.get_rank() if dist.is_initialized() else 0
        seed = np.random.SeedSequence((torch.initial_seed(), rank, *self._batch))
        return torch.Generator(device).manual_seed(int(seed.generate_state(1)[0]))

    @cached_property
    def _as_drawn(self) -> tuple[Tensor, Tensor]:
        """An order [N] in which the decoder draws an image, and the number of each code's group."""
        decoder, count, sizes = Parallel(self.steps), self.layout.codes, self._sizes(self.steps)
        with torch.inference_mode(False):
            known = torch.zeros(1, count, dtype=torch.bool)
            choices = torch.rand(1, count, generator=torch.Generator().manual_seed(0))
            plan = decoder.plan(self.layout, known, [sizes], choices)
            return plan.order[0], torch.tensor(numbered(sizes))

    def begin(self, prefix: Tensor) -> Tensor:
        """A condition's embeddings [B, L, dim] at their positions."""
        return prefix + self.positions[: self.prefix_length]

    def embed(self, codes: Tensor, index: Tensor) -> Tensor:
        """Embeddings [B, n, dim] of codes [B, n] at an index in the flat order [B, n]."""
        if self.layout.depth > 1:
            codes = codes + index % self.layout.depth * self.codebook_size
        return self.tok_embeddings(codes) + F.embedding(self.prefix_length + index, self.positions)

    def ask(self, index: Tensor) -> Tensor:
        """Queries [B, n, dim] for the codes at an index in the flat order [B, n]."""
        return self.query + F.embedding(self.prefix_length + index, self.positions)

    def forward(
        self,
        codes: Tensor,
        inputs: Inputs,
        order: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, N, codebook_size] of all codes at once, for training.

        Args:
            codes: in the order in which they are predicted [B, N].
            order: the index of each in the flat order [B, N]; None where that is their order.
            group: the number of each one's group, rising from 0 [N]; by default each is its own.
        """
        ordinal = torch.arange(codes.shape[1], device=codes.device)
        index = ordinal.expand_as(codes) if order is None else order
        prefix, lengths = self.condition(inputs)
        # The last code can be no context, nor can others of the last group, which nothing sees:
        # with them all schedules have one shape, which costs some hundredths more on average.
        context = self.embed(codes[:, :-1], index[:, :-1])
        x = self.input_norm(torch.cat((self.begin(prefix), context, self.ask(index)), dim=1))
        mask = self.visible(ordinal if group is None else group, lengths)
        for layer in self.layers:
            x = layer(x, mask)
        return self.output(self.norm(x[:, -codes.shape[1] :]))

    def visible(self, group: Tensor, lengths: Tensor | None) -> Mask:
        """What positions of `forward` see: the prefix itself, codes their own group and those
        before, queries the groups before theirs and each other."""
        prefix = group.new_zeros(self.prefix_length)
        context = torch.cat((prefix, group[:-1] + 1))  # how many groups each sees, the prefix first
        of_context, of_queries = (context <= sees[:, None] for sees in (context, group))
        if lengths is not None:
            position = torch.arange(len(context), device=group.device)
            # Of an empty caption one position of padding stays, so that no row is empty.
            real = position >= self.prefix_length - lengths.clamp(min=1)[:, None]
            real = real[:, None, None]
            of_context, of_queries = of_context & real, of_queries & real
        together = (group == group[:, None]).expand(*of_queries.shape[:-1], -1)
        return Mask(of_context, torch.cat((of_queries, together), dim=-1))

    def new_cache(self, batch: int, dtype: torch.dtype, length: int | None = None) -> Cache:
        """Empty cache for `batch` sequences of so many positions; of a whole image by default."""
        length = length or self.prefix_length + self.layout.codes
        shape = (batch, self.heads, length, self.dim // self.heads)
        zeros = partial(torch.zeros, shape, dtype=dtype, device=self.device)
        return [LayerCache(zeros(), zeros()) for _ in self.layers]

    def answer(self, x: Tensor, count: int, position: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits [B, count, codebook_size] of the last `count` of new positions, x [B, T, dim] as
        `begin`, `embed` and `ask` give them; their keys and values are written into the cache, see
        `Past`."""
        x = self.input_norm(x)
        for layer, own in zip(self.layers, cache, strict=True):
            x = layer(x, Past(own, position, mask))
        return self.output(self.norm(x[:, -count:]))
