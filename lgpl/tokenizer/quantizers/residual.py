"""Residual quantization: several codes a place (arXiv 2203.01941, section 3.1)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lgpl.errors import UserError
from lgpl.tokenizer.quantizers.base import Quantized, Quantizer, straight_through

DEEPEST = 8


class ResidualQuantizer(Quantizer):
    """Each code of a place stands for what those before it have left; the features are their sum.

    Every depth has a codebook of its own (arXiv 2107.03312, section III-C).

    Args:
        quantizer: builds the quantizer of one depth.
        depth: codes a place, 1 to 8.
    """

    quantizers: Sequence[Quantizer]

    def __init__(self, quantizer: Callable[[], Quantizer], depth: int = 4) -> None:
        super().__init__()
        if not 1 <= depth <= DEEPEST:
            raise UserError(f"quantizer.depth must be from 1 to {DEEPEST}, got {depth}.")
        built = nn.ModuleList(quantizer() for _ in range(depth))
        self.quantizers = built  # type: ignore[assignment]
        first = self.quantizers[0]
        if first.depth > 1:
            raise UserError("quantizer.quantizer must have one code a place, not a depth itself.")
        self.codebook_size, self.dim, self.depth = first.codebook_size, first.dim, depth

    def forward(self, z: Tensor) -> Quantized:
        made: list[Quantized] = []
        residual = z.float()
        # Gradients: the encoder learns as if the sum were its output, each codebook as it would
        # alone, so from every depth but the first the residual's own share is taken out.
        source = torch.zeros_like(residual)
        for quantizer in self.quantizers:
            one = quantizer(residual)
            source = source + (one.z - residual if made else one.z)
            residual = residual - one.z.detach()
            made.append(one)
        value = functools.reduce(torch.add, [one.z.detach() for one in made])
        codes = torch.stack([one.codes for one in made], dim=1) if self.depth > 1 else made[0].codes
        loss = torch.stack([one.loss for one in made]).sum()
        parts = {
            f"{name}/{index}": part
            for index, one in enumerate(made)
            for name, part in one.parts.items()
        }
        return Quantized(straight_through(value, source), codes, loss, parts)

    def lookup(self, codes: Tensor) -> Tensor:
        return functools.reduce(torch.add, [q.lookup(own) for q, own in self._by_depth(codes)])

    @torch.no_grad()
    def observe(self, z: Tensor, codes: Tensor) -> dict[str, Any]:
        found, residual = {}, z.float()
        for index, (quantizer, own) in enumerate(self._by_depth(codes)):
            for name, value in quantizer.observe(residual, own).items():
                found[f"{name}/{index}"] = value
            residual = residual - quantizer(residual).z  # anew: the codebook may have changed
        return found

    def _by_depth(self, codes: Tensor) -> list[tuple[Quantizer, Tensor]]:
        each = codes.unbind(1) if self.depth > 1 else (codes,)
        return list(zip(self.quantizers, each, strict=True))
