"""Binary spherical quantization (arXiv 2406.07548)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lgpl.errors import UserError
from lgpl.tokenizer.quantizers import base

MOST_BITS = 24  # the usage of the codebook is counted code by code


class BSQ(base.Quantizer):
    """The signs of a vector on the unit sphere (arXiv 2406.07548, section 4): 2^bits codes at the
    corners of a cube inside it.

    loss = entropy_weight * (entropy per sample - entropy of the mean), of soft choices of which
    each bit is one by itself (equation 8), so that it costs as many terms as there are bits.

    Args:
        bits: dimension of a code vector.
        entropy_weight: weight of the entropy term; 0 leaves it out.
        temperature: of the soft choices, in squared distances.
    """

    def __init__(
        self, bits: int = 14, entropy_weight: float = 0.1, temperature: float = 0.1
    ) -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS:
            raise UserError(f"bits: {bits} is outside 1 to {MOST_BITS}.")
        self.codebook_size, self.dim = 2**bits, bits
        self.entropy_weight, self.temperature = entropy_weight, temperature

    def forward(self, z: Tensor) -> base.Quantized:
        with torch.autocast(z.device.type, enabled=False):
            u = F.normalize(base.channels_last(z), dim=-1)  # [B, h, w, D]
            bits = u.detach() > 0
            codes = (bits.long() << torch.arange(self.dim, device=z.device)).sum(-1)
            z_q = base.straight_through(self._corners(bits), u).permute(0, 3, 1, 2)
            terms = {}
            if self.entropy_weight:
                # Between the two values of a bit the score c . u / temperature differs by this.
                logits = 2 * u.flatten(0, 2) / (self.dim**0.5 * self.temperature)  # [N, D]
                log_p = torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), -1)
                terms["entropy"] = self.entropy_weight * base.entropy_loss(log_p)
        return base.Quantized.of_terms(z_q, codes, terms)

    def lookup(self, codes: Tensor) -> Tensor:
        bits = (codes.unsqueeze(-1) >> torch.arange(self.dim, device=codes.device)) & 1
        return self._corners(bits > 0).permute(0, 3, 1, 2)

    def _corners(self, bits: Tensor) -> Tensor:
        return (2.0 * bits - 1.0) / self.dim**0.5
