"""Index backpropagation quantization (arXiv 2412.02692)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.tokenizer.quantizers import base


class IBQ(base.Quantizer):
    """The code of the largest inner product, chosen by a softmax over all codes through which the
    gradient flows (arXiv 2412.02692, section 3.2): every code learns in every step.

    loss = |z_q - z|^2 + |sg z_q - z|^2 + beta |z_q - sg z|^2 + entropy_weight * (entropy per sample
    - entropy of the mean), means over all elements; the first z_q is differentiable by the choice.
    The choices of a training batch take N x codebook_size floats, several times.

    Args:
        codebook_size: number of code vectors.
        dim: width of a code vector; the paper's 256 is far above a VectorQuantizer's.
        beta: weight of the codebook's way to the features.
        entropy_weight: weight of the entropy term; 0 leaves it out.
        temperature: of the choices in the entropy term.
    """

    def __init__(
        self,
        codebook_size: int = 16384,
        dim: int = 256,
        beta: float = 0.25,
        entropy_weight: float = 0.05,
        temperature: float = 0.01,
    ) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, dim
        self.beta, self.entropy_weight, self.temperature = beta, entropy_weight, temperature
        self.codebook = nn.Embedding(codebook_size, dim)

    def forward(self, z: Tensor) -> base.Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = base.channels_last(z)  # [B, h, w, D]
            vectors = self.codebook.weight.float()
            logits = z @ vectors.T  # [B, h, w, K]
            codes = logits.detach().argmax(-1)
            chosen = F.embedding(codes, vectors)
            # One-hot forward, softmax backward: the row of the chosen code learns by `chosen`.
            soft = logits.softmax(-1) @ vectors.detach()
            z_q = chosen + base.straight_through(torch.zeros_like(soft), soft)
            terms = {
                "codebook": self.beta * F.mse_loss(chosen, z.detach()),
                "commitment": F.mse_loss(z, chosen.detach()) + F.mse_loss(z_q, z),
            }
            if self.entropy_weight:
                log_p = F.log_softmax(logits.flatten(0, 2) / self.temperature, dim=-1)
                terms["entropy"] = self.entropy_weight * base.entropy_loss(log_p)
        return base.Quantized.of_terms(z_q.permute(0, 3, 1, 2), codes, terms)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook.weight.float()).permute(0, 3, 1, 2)
