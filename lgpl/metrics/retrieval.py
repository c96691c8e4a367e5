"""Retrieval: is a generated picture nearest to the real one of its prompt?"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def retrieval_accuracy(generated: Tensor, real: Tensor, target: Tensor, k: int) -> float:
    """Share of generated pictures whose own real picture is among the k nearest by cosine.

    Args:
        generated: features [N, D].
        real: features [M, D] of all candidates.
        target: index of the right candidate for each generated picture [N].
        k: how many candidates count.
    """
    similarity = F.normalize(generated, dim=-1) @ F.normalize(real, dim=-1).T
    nearest = similarity.topk(k, dim=-1).indices
    return (nearest == target[:, None]).any(-1).float().mean().item()
