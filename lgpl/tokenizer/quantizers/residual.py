"""Residual quantization: several codes a place (arXiv 2203.01941, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
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

    def __init__(self, quantizer: Callable[[], Quantizer], depth: int = 4) -> None:
        super().__init__()
        if not 1 <= depth <= DEEPEST:
            raise UserError(f"quantizer.depth must be from 1 to {DEEPEST}, got {depth}.")
        self.quantizers = nn.ModuleList(quantizer() for _ in range(depth))
        first = self._of_depth(0)
        if first.depth > 1:
            raise UserError("quantizer.quantizer must have one code a place, not a depth itself.")
        self.codebook_size, self.dim, self.depth = first.codebook_size, first.dim, depth

    def forward(self, z: Tensor) -> Quantized:
        made, residual = [], z.float()
        # Gradients: the encoder learns as if the sum were its output, each codebook as it would
        # alone, so from every depth but the first the residual's own share is taken out.
        source = torch.zeros_like(residual)
        for index in range(self.depth):
            one = self._of_depth(index)(residual)
            source = source + (one.z if index == 0 else one.z - residual)
            residual = residual - one.z.detach()
            made.append(one)
        value = self._sum([one.z.detach() for one in made])
        parts = {
            f"{name}/{index}": part
            for index, one in enumerate(made)
            for name, part in one.parts.items()
        }
        loss = torch.stack([one.loss for one in made]).sum()
        return Quantized(
            straight_through(value, source), self._stacked([one.codes for one in made]), loss, parts
        )

    def lookup(self, codes: Tensor) -> Tensor:
        each = codes.unbind(1) if self.depth > 1 else (codes,)
        return self._sum([self._of_depth(i).lookup(own) for i, own in enumerate(each)])

    @torch.no_grad()
    def observe(self, z: Tensor, codes: Tensor) -> dict[str, Any]:
        found, residual = {}, z.float()
        each = codes.unbind(1) if self.depth > 1 else (codes,)
        for index, own in enumerate(each):
            quantizer = self._of_depth(index)
            for name, value in quantizer.observe(residual, own).items():
                found[f"{name}/{index}"] = value
            residual = residual - quantizer(residual).z  # anew: the codebook may have changed
        return found

    def _of_depth(self, index: int) -> Quantizer:
        quantizer = self.quantizers[index]
        assert isinstance(quantizer, Quantizer)
        return quantizer

    def _stacked(self, codes: list[Tensor]) -> Tensor:
        return torch.stack(codes, dim=1) if self.depth > 1 else codes[0]

    @staticmethod
    def _sum(parts: list[Tensor]) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total
