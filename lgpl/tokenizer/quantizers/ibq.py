"""Index backpropagation quantization (arXiv 2412.02692)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    channels_last,
    entropy_loss,
    straight_through,
)


class IBQ(Quantizer):
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

    def forward(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = channels_last(z)  # [B, h, w, D]
            vectors = self.codebook.weight.float()
            logits = z @ vectors.T  # [B, h, w, K]
            codes = logits.detach().argmax(-1)
            chosen = F.embedding(codes, vectors)
            # One-hot forward, softmax backward: the row of the chosen code learns by `chosen`.
            soft = logits.softmax(-1) @ vectors.detach()
            z_q = chosen + straight_through(torch.zeros_like(soft), soft)
            codebook_loss = self.beta * F.mse_loss(chosen, z.detach())
            commitment_loss = F.mse_loss(z, chosen.detach()) + F.mse_loss(z_q, z)
            loss = codebook_loss + commitment_loss
            parts = {"codebook": codebook_loss.detach(), "commitment": commitment_loss.detach()}
            if self.entropy_weight:
                log_p = F.log_softmax(logits.flatten(0, 2) / self.temperature, dim=-1)
                entropy = self.entropy_weight * entropy_loss(log_p)
                loss = loss + entropy
                parts["entropy"] = entropy.detach()
        return Quantized(z_q.permute(0, 3, 1, 2), codes, loss, parts)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook.weight.float()).permute(0, 3, 1, 2)
