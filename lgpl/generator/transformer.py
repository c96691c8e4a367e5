"""The generator: a Llama decoder over image codes behind a prefix, the condition.

Design (LlamaGen, arXiv 2406.06525, section 2.3): pre-norm blocks with RMSNorm, SwiGLU without
biases, rotary positions in two dimensions, untied head that starts at zero.

The sequence is `prefix` positions of condition, then the codes in raster order, those of one place
behind each other; position i predicts code i + 1 - prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lgpl.codes import CodeLayout
from lgpl.errors import UserError
from lgpl.generator.blocks import Block, Cache, LayerCache, Past, RMSNorm, rotary_table
from lgpl.generator.conditions import Condition, Inputs
from lgpl.generator.decoders import Decoder, Raster
from lgpl.generator.loss import cross_entropy
from lgpl.generator.model import Model

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


def known_size(size: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Layers, heads and width of a name of `SIZES`, or as they are given; raises a UserError."""
    if not isinstance(size, str):
        return size
    if size not in SIZES:
        raise UserError(f"size: {size!r} is none of {', '.join(SIZES)}.")
    return SIZES[size]


def known_codes(
    codebook_size: int | None, grid: tuple[int, int] | None, depth: int | None
) -> tuple[int, CodeLayout]:
    """The number of codes, and their layout; a UserError where a config leaves one out."""
    if codebook_size is None:
        given = "give the number of codes, or model.tokenizer, whose checkpoint knows it"
        raise UserError(f"transformer.codebook_size is not set; {given}.")
    if grid is None:
        given = "give rows and columns, or model.tokenizer with code shards whose statistics"
        raise UserError(f"transformer.grid is not set; {given} name it, or with images.")
    return codebook_size, CodeLayout(*grid, 1 if depth is None else depth)


@dataclass(frozen=True)
class RandomOrder:
    """Random orders, annealed to raster order (RAR, arXiv 2411.00776, section 3.2).

    An image's codes are shuffled with a probability that falls linearly from 1 to 0; so the model
    learns to look both ways, and samples in raster order all the same. The transformer needs
    `target_positions`.

    Attributes:
        start: optimizer step at which the probability begins to fall.
        end: optimizer step from which on the order is raster.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            given = f"start {self.start} and end {self.end} are no range of optimizer steps"
            raise UserError(f"order: {given}; give 0 <= start < end.")

    def probability(self, step: int) -> float:
        return min(1.0, max(0.0, (self.end - step) / (self.end - self.start)))

    def draw(self, batch: int, count: int, step: int, device: torch.device) -> Tensor:
        """Orders [batch, count] of an optimizer step: places in raster order."""
        raster = torch.arange(count, device=device).expand(batch, -1)
        shuffled = torch.rand(batch, count, device=device).argsort(dim=-1)
        chosen = torch.rand(batch, 1, device=device) < self.probability(step)
        return torch.where(chosen, shuffled, raster)


def take(x: Tensor, position: Tensor) -> Tensor:
    """Of x [B, T, D] the positions [B, n] of each row, [B, n, D]."""
    row = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (row + position).flatten()).view(*position.shape, -1)


class Transformer(Model):
    """Predicts the codes of an image one after the other.

    Args:
        condition: builds what the model is conditioned on, given its width.
        size: a name of `SIZES` or (layers, heads, dim).
        codebook_size: number of codes.
        grid: rows and columns of places.
        depth: codes a place, as the tokenizer has, by default 1; each depth has embeddings of its
            own. The command line fills in what a config leaves out of these three.
        dropout: on the outputs of attention and feed-forward.
        token_dropout: on the embeddings of prefix and codes.
        drop_path: probability that the last block's branches are left out for a sample in training;
            it rises linearly from 0 at the first.
        prefix_rope: see `rotary_table`.
        qk_norm: see `Attention`.
        target_positions: add to every position a learned embedding of the code it predicts, that
            starts at zero; what `order` needs (arXiv 2411.00776, section 3.2).
        order: of the places in training; None is raster order. Evaluation is in raster order.
        activation_checkpointing: compute each block again in the backward pass (arXiv 1604.06174):
            much less memory, a third more work.
    """

    def __init__(
        self,
        condition: Callable[[int], Condition],
        size: str | tuple[int, int, int] = "B",
        codebook_size: int | None = None,
        grid: tuple[int, int] | None = None,
        depth: int | None = None,
        dropout: float = 0.1,
        token_dropout: float = 0.1,
        drop_path: float = 0.0,
        prefix_rope: Literal["identity", "zero"] = "identity",
        qk_norm: bool = False,
        target_positions: bool = False,
        order: RandomOrder | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        layers, heads, dim = known_size(size)
        if dim % heads or (dim // heads) % 4:
            rule = "a head's dimension must be a multiple of 4, half for rows and half for columns"
            raise UserError(f"size: dim {dim} over {heads} heads is {dim / heads:g}; {rule}.")
        if order is not None and not target_positions:
            raise UserError("order: random orders need target_positions; set it to true.")
        codebook_size, self.layout = known_codes(codebook_size, grid, depth)
        self.codebook_size, self.order, depth = codebook_size, order, self.layout.depth
        self.heads, self.dim, self.prefix_rope = heads, dim, prefix_rope
        self.condition = condition(dim)
        self.prefix_length = length = self.condition.length
        if length < 1:
            has = f"condition: {type(self.condition).__name__} has a prefix of length {length}"
            raise UserError(f"{has}; the first code is predicted from at least 1 position.")
        self.tok_embeddings = nn.Embedding(depth * codebook_size, dim)
        self.token_dropout = nn.Dropout(token_dropout)
        paths = torch.linspace(0.0, drop_path, layers, device="cpu").tolist()
        self.layers = nn.ModuleList(
            Block(dim, heads, dropout, path, qk_norm, activation_checkpointing) for path in paths
        )
        target = torch.zeros(self.layout.codes, dim)
        self.target = nn.Parameter(target) if target_positions else None
        self.norm = RMSNorm(dim)
        self.output = nn.Linear(dim, codebook_size, bias=False)
        table = rotary_table(self.prefix_length, self.layout, dim // heads, prefix_rope)
        self.register_buffer("rope", table, persistent=False)
        self.rope: Tensor
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, 0.02)
        nn.init.zeros_(self.output.weight)

    def _apply(self, fn: Any, recurse: bool = True) -> Transformer:
        """Moves and casts; the rotary table stays float32, whose angles bf16 would round."""
        table = self.rope
        super()._apply(fn, recurse)
        if self.rope.dtype != table.dtype:
            self.rope = table.to(self.rope.device)
        return self

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    def hidden_matrices(self) -> list[Tensor]:
        """Those between embeddings and head, with the condition's."""
        linear = [m for m in self.modules() if isinstance(m, nn.Linear) and m is not self.output]
        return [m.weight for m in linear]

    def decoder(self) -> Decoder:
        return Raster()

    def check_start(self, other: Model, source: object) -> None:
        """Rotary tables are computed, so the grid may grow."""
        if not isinstance(other, Transformer):
            raise UserError(f"{source} holds a {type(other).__name__}, which is no Transformer.")
        for name in ("heads", "prefix_rope"):  # what shapes do not show
            found, wanted = getattr(other, name), getattr(self, name)
            if found != wanted:
                apart = f"{name} {found}, but the config's transformer has {wanted}"
                raise UserError(f"{source} was trained with {apart}; give it {found}.")
        theirs, ours = other.layout, self.layout
        if ours.rows < theirs.rows or ours.columns < theirs.columns:
            smaller = f"the config's is smaller, {ours}; it can only grow"
            raise UserError(f"{source} was trained on a grid of {theirs}, {smaller}.")

    def pack(self) -> None:
        from lgpl.generator.packing import pack_weights

        pack_weights(self)

    def loss(self, codes: Tensor, inputs: Inputs, step: int) -> Tensor:
        order = None
        if self.training and self.order is not None:
            depth = torch.arange(self.layout.depth, device=codes.device)
            places = self.order.draw(len(codes), self.layout.places, step, codes.device)
            order = (places.unsqueeze(-1) * self.layout.depth + depth).flatten(1)
            codes = codes.gather(1, order)
        logits = self(codes, inputs, order)
        return cross_entropy(logits.flatten(0, 1), codes.flatten()).view(codes.shape).mean(1)

    def embed(self, codes: Tensor, index: Tensor) -> Tensor:
        """Embeddings [B, n, dim] of codes [B, n] at an index in the flat order, [n] or [B, n]."""
        if self.layout.depth > 1:
            codes = codes + index % self.layout.depth * self.codebook_size
        return self.tok_embeddings(codes)

    def new_cache(self, batch: int, dtype: torch.dtype, length: int | None = None) -> Cache:
        """Empty cache for `batch` sequences of so many positions; of a whole image by default."""
        length = length or self.prefix_length + self.layout.codes
        shape = (batch, self.heads, length, self.dim // self.heads)
        zeros = partial(torch.zeros, shape, dtype=dtype, device=self.device)
        return [LayerCache(zeros(), zeros()) for _ in self.layers]

    def forward(self, codes: Tensor, inputs: Inputs, order: Tensor | None = None) -> Tensor:
        """Logits [B, N, codebook_size] of all codes at once, for training. Codes [B, N] are in the
        order in which they are predicted; `order` has the index of each in the flat order [B, N],
        None where that is their order."""
        prefix, lengths = self.condition(inputs)
        index = torch.arange(codes.shape[1], device=codes.device) if order is None else order
        x = torch.cat((prefix, self.embed(codes[:, :-1], index[..., :-1])), dim=1)
        first = self.prefix_length - 1  # position that predicts a code
        if self.target is not None:
            x = torch.cat((x[:, :first], x[:, first:] + self.target[index]), dim=1)
        x = self.token_dropout(x)
        position = torch.arange(x.shape[1], device=x.device)
        before = position[: self.prefix_length].expand(*index.shape[:-1], -1)
        place = torch.cat((before, self.prefix_length + index[..., :-1]), dim=-1)  # in the table
        if lengths is not None:
            # Each sequence is turned until its padding stands behind its last code, where a causal
            # query never looks. So the kernel is that of class models, which on GPUs is flash
            # attention only without a mask, and no slower on CPUs; FlexAttention has no backward
            # there. An empty caption keeps one position of padding, which predicts the first code.
            padding = (self.prefix_length - lengths).clamp(max=self.prefix_length - 1)[:, None]
            turned = (position + padding) % x.shape[1]  # [B, T]
            x, place = take(x, turned), place.expand(len(x), -1).gather(1, turned)
        rope = self.rope[place]
        for layer in self.layers:
            x = layer(x, rope)
        x = x[:, first:] if lengths is None else take(x, position[first:] - padding)
        return self.output(self.norm(x))

    def mask(self, lengths: Tensor, total: int) -> Tensor:
        """[B, 1, total, total], true where a query may see a key: causal, and padding sees itself
        alone, so that no row is empty. Of an empty caption one position stays, as in training."""
        position = torch.arange(total, device=lengths.device)
        real = position >= self.prefix_length - lengths.clamp(min=1)[:, None]  # [B, total]
        causal = position[:, None] >= position
        itself = position[:, None] == position
        return (causal & real[:, None] | itself).unsqueeze(1)

    def toward(self, x: Tensor, position: Tensor) -> Tensor:
        """Embeddings [B, T, dim] of positions [T] or [B, T], with that of the code each is to
        predict."""
        if self.target is None:
            return x
        code = position + 1 - self.prefix_length
        target = self.target[code.clamp(0, self.layout.codes - 1)]
        return x + target * (code >= 0).unsqueeze(-1)

    def step(self, x: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """Logits [B, codebook_size] after the last of new positions [T], or [B, T] of each row,
        embedded x [B, T, dim], whose keys and values are written into the cache; see `Past`."""
        return self.output(self.norm(self._through_blocks(x, position, mask, cache)[:, -1]))

    def verify(self, x: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """As `step`, but logits [B, T, codebook_size] after each of the new positions."""
        return self.output(self.norm(self._through_blocks(x, position, mask, cache)))

    def _through_blocks(self, x: Tensor, position: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        """What the blocks make of new positions x [B, T, dim]."""
        x, rope = self.toward(x, position), self.rope[position]
        for layer, kept in zip(self.layers, cache, strict=True):
            x = layer(x, rope, Past(kept, position, mask))
        return x
