"""The order in which an image's codes are predicted."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lgpl.errors import UserError


@dataclass(frozen=True)
class RandomOrder:
    """Random orders, annealed to raster order (RAR, arXiv 2411.00776, section 3.2).

    An image's codes are shuffled with a probability that falls linearly from 1 to 0; so the model
    learns to look both ways, and samples in raster order all the same. The transformer needs
    `target_positions`.

    Attributes:
        start: optimizer step at which the probability begins to fall.
        end: optimizer step from which on the order is raster.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise UserError(
                f"order: start {self.start} and end {self.end} are no range of optimizer steps; "
                "give 0 <= start < end."
            )

    def probability(self, step: int) -> float:
        return min(1.0, max(0.0, (self.end - step) / (self.end - self.start)))

    def draw(self, batch: int, count: int, step: int, device: torch.device) -> Tensor:
        """Orders [batch, count] of an optimizer step: places in raster order."""
        raster = torch.arange(count, device=device).expand(batch, -1)
        shuffled = torch.rand(batch, count, device=device).argsort(dim=-1)
        chosen = torch.rand(batch, 1, device=device) < self.probability(step)
        return torch.where(chosen, shuffled, raster)
