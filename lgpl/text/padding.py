"""Padding of text features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(features: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Text features of different lengths as one batch.

    Args:
        features: one [L, D] for each caption; of one longer than `length` the first are kept.
        length: number of positions.

    Returns:
        Features [B, length, D], zeros on the left, and lengths [B] (int64).
    """
    lengths = torch.tensor([min(len(f), length) for f in features])
    batch = features[0].new_zeros(len(features), length, features[0].shape[1])
    for row, f, n in zip(batch, features, lengths.tolist(), strict=True):
        row[length - n :] = f[:n]
    return batch, lengths
