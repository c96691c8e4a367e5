"""How codes are drawn: decoders behind one interface."""

from lgpl.generator.decoders.base import Decoder, Progress, Step, Task, generate
from lgpl.generator.decoders.parallel import Parallel
from lgpl.generator.decoders.raster import Raster
from lgpl.generator.decoders.speculative import SpeculativeJacobi
from lgpl.generator.decoders.uncached import UncachedRaster

__all__ = ["Decoder", "Parallel", "Progress", "Raster", "SpeculativeJacobi", "Step", "Task"]
__all__ += ["UncachedRaster", "generate"]
