"""Weights of 8 bits for sampling, whose steps take as long as reading the weights."""

from torch import nn

from lgpl.generator.model import Model
from lgpl.lazy import needs


def int8_weights(model: Model) -> None:
    """Round all matrices but the condition's to 8 bits, with one scale for each output, in place;
    what they are multiplied with and the dtype of the products stay as they are (torchao)."""
    needs("--int8", "torchao", "int8")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.startswith("condition.")

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=chosen)
