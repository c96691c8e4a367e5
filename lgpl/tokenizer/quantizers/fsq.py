"""Finite scalar quantization (arXiv 2309.15505)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lgpl.errors import UserError
from lgpl.tokenizer.quantizers.base import Quantized, Quantizer, channels_last, straight_through

MARGIN = 1e-3  # of the bound, so that the outermost values are not only reached at infinity


class FSQ(Quantizer):
    """Each dimension rounded to a few levels (arXiv 2309.15505, section 3.1): a grid instead of a
    learned codebook, and no loss of its own.

    The number of codes is the product of the levels, the dimension their number. The paper's
    choices are [8, 5, 5, 5] for about 2^10 codes, [8, 8, 8, 6, 5] for about 2^14.

    Args:
        levels: values of each dimension, at least 3.
    """

    def __init__(self, levels: Sequence[int] = (8, 8, 8, 6, 5)) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise UserError(f"levels: {[*levels]} must hold a number of at least 3 for each.")
        self.codebook_size, self.dim = math.prod(levels), len(levels)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        self.levels = nn.Buffer(torch.tensor([*levels]), persistent=False)
        self.places = nn.Buffer(torch.tensor(places), persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bound(channels_last(z))  # [B, h, w, D]
            digits = bounded.detach().round().long() + self.levels // 2  # 0 to levels - 1
            codes = (digits * self.places).sum(-1)
            scaled = bounded / (self.levels // 2)
            z_q = straight_through(self._values(digits), scaled).permute(0, 3, 1, 2)
        return Quantized(z_q, codes, z_q.new_zeros(()), {})

    def lookup(self, codes: Tensor) -> Tensor:
        digits = codes.unsqueeze(-1) // self.places % self.levels
        return self._values(digits).permute(0, 3, 1, 2)

    def _values(self, digits: Tensor) -> Tensor:
        half = self.levels // 2
        return (digits - half) / half  # -1 to 1, or a step less where the levels are even

    def _bound(self, z: Tensor) -> Tensor:
        """To where rounding gives each level, 0 to 0; even levels have one more below 0."""
        reach = (self.levels - 1) * (1 - MARGIN) / 2
        offset = (1 - self.levels % 2) / 2
        return torch.tanh(z + torch.atanh(offset / reach)) * reach - offset
