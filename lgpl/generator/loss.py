"""Cross-entropy over a large codebook without float32 copies of the logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 512  # 32 MiB in float32 at 16384 codes; enough to keep a GPU busy


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Loss [M] of logits [M, K] and codes [M] in nats, computed in float32. Where `F.cross_entropy`
    has log-softmax and gradient in float32, this keeps the logits alone for the backward pass, in
    bf16 if they are, and takes the softmax again, some rows at a time."""
    return _CrossEntropy.apply(logits, codes)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, codes: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(logits, codes)
        parts = zip(logits.split(ROWS), codes.split(ROWS), strict=True)
        return torch.cat([F.cross_entropy(x.float(), y, reduction="none") for x, y in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """(softmax - one-hot) times the gradient of the row's loss."""
        logits, codes = ctx.saved_tensors
        out = torch.empty_like(logits)
        split = (tensor.split(ROWS) for tensor in (logits, codes[:, None], grad[:, None], out))
        for rows, targets, weight, place in zip(*split, strict=True):
            p = rows.softmax(-1, dtype=torch.float32)
            p.scatter_add_(-1, targets, p.new_full(targets.shape, -1.0))
            place.copy_(p.mul_(weight))
        return out, None
