"""How much of a codebook is in use."""

import itertools
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(Metric):
    """Share of the codebook that occurs, and perplexity, of the last `window` codes of each rank
    (the paper's 65536 in training); None counts all since the last reset."""

    counts: Tensor

    def __init__(self, codebook_size: int, window: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size, self.window = codebook_size, window
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.int64), "sum")
        self._recent: deque[tuple[int, Tensor]] = deque()  # number and counts of each batch

    def update(self, codes: Tensor) -> None:
        """Count codes of any shape."""
        codes = codes.flatten().long()  # and no bincount, which waits for the device
        counts = torch.zeros_like(self.counts).scatter_add_(0, codes, torch.ones_like(codes))
        self.counts = self.counts + counts
        if self.window is None:
            return
        self._recent.append((codes.numel(), counts))
        while sum(number for number, _ in itertools.islice(self._recent, 1, None)) >= self.window:
            self.counts = self.counts - self._recent.popleft()[1]

    def compute(self) -> dict[str, Tensor]:
        """`usage` in [0, 1] and `perplexity` in [1, codebook_size]."""
        p = self.counts.float() / self.counts.sum().clamp(min=1)
        entropy = -(p * p.clamp(min=1e-20).log()).sum()
        return {"usage": (self.counts > 0).float().mean(), "perplexity": entropy.exp()}

    def reset(self) -> None:
        super().reset()
        self._recent.clear()
