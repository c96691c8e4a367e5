"""Padding of text features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def left_pad(features: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Features [L, D] of each caption, cut or with zeros on the left, as a batch [B, length, D];
    and their lengths [B], int64."""
    kept = [f[:length] for f in features]
    batch = torch.stack([F.pad(f, (0, 0, length - len(f), 0)) for f in kept])
    return batch, torch.tensor([len(f) for f in kept])
