"""The autoregressive generator: conditions to codes."""

from lgpl.generator.decoding import CompiledDecoder, generate
from lgpl.generator.module import GeneratorModule
from lgpl.generator.order import RandomOrder
from lgpl.generator.sampling import Sampling
from lgpl.generator.transformer import Transformer

__all__ = [
    "CompiledDecoder",
    "GeneratorModule",
    "RandomOrder",
    "Sampling",
    "Transformer",
    "generate",
]
