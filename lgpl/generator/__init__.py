"""The autoregressive generator: conditions to codes."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.generator.conditions import ClassCondition, Condition, Conditions, TextCondition
    from lgpl.generator.decoding import CompiledDecoder, generate
    from lgpl.generator.module import GeneratorModule
    from lgpl.generator.order import RandomOrder
    from lgpl.generator.sampling import Sampling
    from lgpl.generator.transformer import Transformer

__all__ = [
    "ClassCondition",
    "CompiledDecoder",
    "Condition",
    "Conditions",
    "GeneratorModule",
    "RandomOrder",
    "Sampling",
    "TextCondition",
    "Transformer",
    "generate",
]

__getattr__ = lazily(
    __name__,
    {
        "conditions": ("ClassCondition", "Condition", "Conditions", "TextCondition"),
        "decoding": ("CompiledDecoder", "generate"),
        "module": ("GeneratorModule",),
        "order": ("RandomOrder",),
        "sampling": ("Sampling",),
        "transformer": ("Transformer",),
    },
)
