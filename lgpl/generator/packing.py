"""Weights laid out for a CPU's products, for sampling, whose steps have few rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.generator.blocks import Block, FeedForward
from lgpl.generator.transformer import Transformer


def pack_weights(model: Transformer) -> None:
    """Lay the matrices of blocks and head out as oneDNN's products read them, in place.

    On two cores (AMD with AVX-512, no AMX) 16 rows of 768 to 2304 take half as long in float32 and
    0.6 times as long in bf16, and a row of two or more comes out the same, bit by bit, whatever
    stands beside it; with many rows nothing is lost. The model can no longer be trained or saved,
    nor sampled under autocast. Nothing happens to weights of 8 bits, or without such products.
    """
    weight = model.output.weight
    # Weights of 8 bits are no plain parameters and have products of their own.
    if type(weight) is not nn.Parameter or not _packs(weight):
        return
    for layer in model.layers:
        assert isinstance(layer, Block)
        for name in ("wqkv", "wo"):
            layer.attention.add_module(name, PackedLinear(getattr(layer.attention, name)))
        layer.add_module("feed_forward", PackedFeedForward(layer.feed_forward))
    model.add_module("output", PackedLinear(model.output))


def _packs(weight: Tensor) -> bool:
    if not weight.is_cpu or not torch.backends.mkldnn.is_available():
        return False
    bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32


class PackedLinear(nn.Module):
    """Linear layers without bias as one, their outputs behind each other; the weight is packed, and
    inputs have its dtype.

    The two operations are those that TorchInductor takes for frozen models.
    """

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        # No buffer: what is packed cannot be moved or cast.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return product


class PackedFeedForward(nn.Module):
    """`FeedForward` with one product for gate and up: 0.9 times as long for one guided image."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.w13 = PackedLinear(feed_forward.w1, feed_forward.w3)
        self.w2 = PackedLinear(feed_forward.w2)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        y: Tensor = self.w2(F.silu(gate) * up)
        return y
