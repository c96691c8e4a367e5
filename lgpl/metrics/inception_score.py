"""Inception score (arXiv 1606.03498), streamed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

SPLITS = 10


class StreamedInceptionScore(Metric):
    """exp of the mean divergence of p(class | image) from p(class), over splits in the order of
    the images.

    Args:
        classes: number of logits.
        total: the images' numbers lie below it; it sets the splits' borders.
    """

    entropy: Tensor
    marginal: Tensor
    count: Tensor
    full_state_update = False

    def __init__(self, classes: int, total: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.total = total
        self.add_state("entropy", torch.zeros(SPLITS, dtype=torch.float64), "sum")
        self.add_state("marginal", torch.zeros(SPLITS, classes, dtype=torch.float64), "sum")
        self.add_state("count", torch.zeros(SPLITS, dtype=torch.float64), "sum")

    def update(self, logits: Tensor, number: Tensor) -> None:
        """Add logits [B, K] of the images of these numbers [B]."""
        log_p = logits.double().log_softmax(-1)
        p = log_p.exp()
        split = (number * SPLITS // self.total).clamp(max=SPLITS - 1)
        self.entropy = self.entropy.index_add(0, split, (p * log_p).sum(-1))
        self.marginal = self.marginal.index_add(0, split, p)
        self.count = self.count.index_add(0, split, torch.ones_like(split, dtype=torch.float64))

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        p = self.marginal / self.count[:, None]
        divergence = self.entropy / self.count - (p * p.clamp(min=1e-300).log()).sum(-1)
        scores = divergence[self.count > 0].exp()
        return scores.mean().item(), scores.std(correction=0).item()
