"""What all quantizers share: the interface, the gradient past a choice, the entropy of choices.

A quantizer is an `nn.Module` with `codebook_size`, `dim`, `forward(z) -> Quantized` and
`lookup(codes) -> z`, for which `lookup(forward(z).codes)` equals `forward(z).z`. It computes in
float32 whatever it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lgpl.described import Described


@dataclass
class Quantized:
    """What a quantizer made of features [B, D, h, w].

    Attributes:
        z: quantized features [B, D, h, w], float32, differentiable towards the input.
        codes: indices into the codebook [B, h, w], or [B, depth, h, w], int64.
        loss: the quantizer's own loss, a scalar.
        parts: the terms of that loss by name, detached, for logging.
        features: that were quantized, detached, where whoever called keeps them.
    """

    z: Tensor
    codes: Tensor
    loss: Tensor
    parts: dict[str, Tensor]
    features: Tensor | None = None


class Quantizer(Described, nn.Module):
    """Interface of all quantizers.

    Attributes:
        codebook_size: number of codes.
        dim: width of the features.
        depth: codes of each place; above 1 their tensors are [B, depth, h, w].
    """

    codebook_size: int
    dim: int
    depth: int = 1

    def forward(self, z: Tensor) -> Quantized:
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Quantized features [B, D, h, w] of codes [B, h, w]."""
        raise NotImplementedError

    def observe(self, z: Tensor, codes: Tensor) -> dict[str, Any]:
        """Called once a training batch after the optimizer's step; the place for codebook care.

        Args:
            z: the features [B, D, h, w] that were quantized.
            codes: their codes [B, h, w].

        Returns:
            Metrics to log.
        """
        return {}


def channels_last(z: Tensor) -> Tensor:
    """Features [B, D, h, w] as [B, h, w, D], float32.

    Laid out anew, so that what comes of them is laid out like what `lookup` makes: convolutions
    round differently for another layout.
    """
    return z.float().permute(0, 2, 3, 1).contiguous()


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, to the last bit, with the gradient of `source`."""
    return value.detach() + (source - source.detach())


def entropy_loss(log_p: Tensor) -> Tensor:
    """Mean entropy of the choices less the entropy of the mean choice (arXiv 2310.05737, section
    3): low where each choice is certain and all codes are chosen equally often.

    Args:
        log_p: log-probabilities [N, ..., K]; of several independent choices the entropies add up.
    """
    p = log_p.exp()
    mean = p.mean(0)
    of_each = -(p * log_p).sum() / len(p)
    return of_each + (mean * (mean + 1e-5).log()).sum()
