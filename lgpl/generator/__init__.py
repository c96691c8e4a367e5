"""The autoregressive generator: conditions to codes."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.generator.conditions import ClassCondition, Condition, Conditions, TextCondition
    from lgpl.generator.decoders import (
        Decoder,
        Parallel,
        Raster,
        SpeculativeJacobi,
        UncachedRaster,
        generate,
    )
    from lgpl.generator.model import Model
    from lgpl.generator.module import GeneratorModule
    from lgpl.generator.parallel import ParallelTransformer
    from lgpl.generator.sampling import Sampling
    from lgpl.generator.transformer import RandomOrder, Transformer

__getattr__ = lazily(
    __name__,
    conditions=("ClassCondition", "Condition", "Conditions", "TextCondition"),
    decoders=(
        *("Decoder", "Parallel", "Raster", "SpeculativeJacobi", "UncachedRaster"),
        "generate",
    ),
    model=("Model",),
    module=("GeneratorModule",),
    parallel=("ParallelTransformer",),
    sampling=("Sampling",),
    transformer=("RandomOrder", "Transformer"),
)
