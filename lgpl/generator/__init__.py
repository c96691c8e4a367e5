"""The autoregressive generator: conditions to codes."""

from typing import TYPE_CHECKING

from lgpl.generator.conditions import ClassCondition, Condition, Conditions, TextCondition
from lgpl.generator.decoding import CompiledDecoder, generate
from lgpl.generator.order import RandomOrder
from lgpl.generator.sampling import Sampling
from lgpl.generator.transformer import Transformer
from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.generator.module import GeneratorModule

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

__getattr__ = lazily(__name__, {"GeneratorModule": "lgpl.generator.module"})
