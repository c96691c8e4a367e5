"""Weights laid out for a CPU's products, for sampling, whose steps have few rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgpl.generator.transformer import Transformer


def pack_weights(model: Transformer) -> None:
    """Lay the matrices of blocks and head out as oneDNN's products read them, in place.

    On two cores (AMD with AVX-512, no AMX) 16 rows of 768 to 2304 take half as long in float32 and
    0.6 times as long in bf16, and a row of two or more comes out the same, bit by bit, whatever
    stands beside it; with many rows nothing is lost. The model can no longer be trained or saved,
    nor sampled under autocast. Nothing happens to weights of 8 bits, or without such products.
    """
    for module in (*model.layers.modules(), model):
        for name, child in module.named_children():
            # Weights of 8 bits are no plain parameters and have products of their own.
            if isinstance(child, nn.Linear) and type(child.weight) is nn.Parameter:
                setattr(module, name, PackedLinear(child) if _packs(child.weight) else child)


def _packs(weight: Tensor) -> bool:
    if not weight.is_cpu or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """A linear layer without bias whose weight is packed; its inputs have the weight's dtype.

    The two operations are those that TorchInductor takes for frozen models.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # No buffer: what is packed cannot be moved or cast.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return product
