"""The autoregressive generator: conditions to codes."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.generator.conditions import ClassCondition as ClassCondition
    from lgpl.generator.conditions import Condition as Condition
    from lgpl.generator.conditions import Conditions as Conditions
    from lgpl.generator.conditions import TextCondition as TextCondition
    from lgpl.generator.decoders import Decoder as Decoder
    from lgpl.generator.decoders import Raster as Raster
    from lgpl.generator.decoders import UncachedRaster as UncachedRaster
    from lgpl.generator.decoders import generate as generate
    from lgpl.generator.model import Model as Model
    from lgpl.generator.module import GeneratorModule as GeneratorModule
    from lgpl.generator.sampling import Sampling as Sampling
    from lgpl.generator.transformer import RandomOrder as RandomOrder
    from lgpl.generator.transformer import Transformer as Transformer

__getattr__ = lazily(
    __name__,
    {
        "conditions": ("ClassCondition", "Condition", "Conditions", "TextCondition"),
        "decoders": ("Decoder", "Raster", "UncachedRaster", "generate"),
        "model": ("Model",),
        "module": ("GeneratorModule",),
        "sampling": ("Sampling",),
        "transformer": ("RandomOrder", "Transformer"),
    },
)
