"""Weights of 8 bits for sampling, whose steps take as long as reading the weights."""

from __future__ import annotations

from torch import nn

from lgpl.errors import UserError
from lgpl.generator.model import Model


def int8_weights(model: Model) -> None:
    """Round all matrices but the condition's to 8 bits, with one scale for each output, in place.

    What they are multiplied with stays as it is, and so does the dtype of the products (torchao).

    Raises:
        UserError: torchao is missing.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError("--int8 needs torchao: pip install 'lgpl[int8]'.") from error

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and not name.startswith("condition.")

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=chosen)
