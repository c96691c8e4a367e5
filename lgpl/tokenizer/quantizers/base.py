"""What all quantizers share: the interface, the gradient past a choice, the entropy of choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lgpl.described import Described


@dataclass
class Quantized:
    """What a quantizer made of features [B, D, h, w]."""

    z: Tensor  # quantized features [B, D, h, w], float32, differentiable towards the input
    codes: Tensor  # indices into the codebook [B, h, w], or [B, depth, h, w], int64
    loss: Tensor  # the quantizer's own, a scalar
    parts: dict[str, Tensor]  # the terms of that loss by name, detached, for logging
    features: Tensor | None = None  # that were quantized, detached, where whoever called keeps them

    @classmethod
    def of_terms(cls, z: Tensor, codes: Tensor, terms: dict[str, Tensor]) -> Quantized:
        """One whose loss is the sum of the terms."""
        loss = sum(terms.values(), start=z.new_zeros(()))
        return cls(z, codes, loss, {name: term.detach() for name, term in terms.items()})


class Quantizer(Described, nn.Module):
    """`lookup(forward(z).codes)` equals `forward(z).z`, and is float32 whatever it is given."""

    codebook_size: int  # number of codes
    dim: int  # width of the features
    depth: int = 1  # codes of each place; above 1 their tensors are [B, depth, h, w]

    def forward(self, z: Tensor) -> Quantized:
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Quantized features [B, D, h, w] of codes [B, h, w]."""
        raise NotImplementedError

    def observe(self, z: Tensor, codes: Tensor) -> dict[str, Any]:
        """Called after each step of the optimizer with the features [B, D, h, w] of the last batch
        and their codes [B, h, w]; the place for codebook care. Gives metrics to log."""
        return {}


def channels_last(z: Tensor) -> Tensor:
    """Features [B, D, h, w] as [B, h, w, D], float32. Laid out anew, so that what comes of them is
    laid out like what `lookup` makes: convolutions round differently for another layout."""
    return z.float().permute(0, 2, 3, 1).contiguous()


def straight_through(value: Tensor, source: Tensor) -> Tensor:
    """`value`, to the last bit, with the gradient of `source`."""
    return value.detach() + (source - source.detach())


def entropy_loss(log_p: Tensor) -> Tensor:
    """Mean entropy of the choices less the entropy of the mean choice (arXiv 2310.05737, section
    3): low where each choice is certain and all codes are chosen equally often. Takes the
    logarithms of probabilities [N, ..., K]; the entropies of several independent choices add up."""
    p = log_p.exp()
    mean = p.mean(0)
    of_each = -(p * log_p).sum() / len(p)
    return of_each + (mean * (mean + 1e-5).log()).sum()
