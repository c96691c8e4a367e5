"""Weights for sampling, whose steps have few rows: of 8 bits, or laid out for a CPU's products."""

import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgpl.generator.blocks import Block, FeedForward
from lgpl.generator.model import Model
from lgpl.generator.transformer import Transformer
from lgpl.lazy import needs

log = logging.getLogger(__name__)


def int8_weights(model: Model) -> None:
    """Round all matrices but the condition's to 8 bits, with one scale for each output, in place;
    what they are multiplied with and the dtype of the products stay as they are (torchao)."""
    needs("--int8", "torchao", "int8")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.startswith("condition.")

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=chosen)


def pack_weights(model: Transformer) -> None:
    """Lay the matrices of blocks and head out as oneDNN's products read them, in place.

    On two cores (AMD with AVX-512, no AMX) 16 rows of 768 to 2304 take half as long in float32 and
    0.6 times as long in bf16, and a row of two or more comes out the same, bit by bit, whatever
    stands beside it; with many rows nothing is lost. The model can no longer be trained or saved,
    nor sampled under autocast. Nothing happens to weights of 8 bits, or where torch's private
    operations for it are missing or give other numbers than a plain product.
    """
    weight = model.output.weight  # of 8 bits it is no plain parameter, and has products of its own
    if type(weight) is not nn.Parameter or not weight.is_cpu or not _packs(weight.dtype):
        return
    for layer in model.layers:
        assert isinstance(layer, Block)
        for name in ("wqkv", "wo"):
            layer.attention.add_module(name, PackedLinear(getattr(layer.attention, name)))
        layer.add_module("feed_forward", PackedFeedForward(layer.feed_forward))
    model.add_module("output", PackedLinear(model.output))


@functools.cache
def _packs(dtype: torch.dtype) -> bool:
    """Tried once on a small product: other versions of torch may lack the operations."""
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        numbers = torch.linspace(0, 40 * math.pi, 64 * 32).sin().to(dtype)  # no random ones
        linear = nn.Linear(32, 64, bias=False, dtype=dtype)
        linear.weight.data = numbers.view(64, 32)
        x = numbers[:96].view(3, 32)
        with torch.no_grad():
            torch.testing.assert_close(PackedLinear(linear)(x), linear(x))
    except Exception as error:  # as many kinds as there are ways to change
        log.warning("weights are not packed for the CPU: %s", str(error).partition("\n")[0])
        return False
    return True


class PackedLinear(nn.Module):
    """Linear layers without bias as one, their outputs behind each other, on inputs of their dtype;
    by the two operations that TorchInductor takes for frozen models."""

    def __init__(self, *linears: nn.Linear) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        # No buffer: what is packed cannot be moved or cast.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class PackedFeedForward(nn.Module):
    """`FeedForward` with one product for gate and up: 0.9 times as long for one guided image."""

    def __init__(self, feed_forward: FeedForward) -> None:
        super().__init__()
        self.w13 = PackedLinear(feed_forward.w1, feed_forward.w3)
        self.w2 = PackedLinear(feed_forward.w2)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * up)
