"""Callbacks to name in a config."""

from lgpl.callbacks.checkpoint import LastCheckpoint as LastCheckpoint
from lgpl.callbacks.code_shards import CodeShardWriter as CodeShardWriter
from lgpl.callbacks.ema import EMA as EMA
from lgpl.callbacks.evaluation import GenerationEvaluation as GenerationEvaluation
from lgpl.callbacks.evaluation import ReconstructionEvaluation as ReconstructionEvaluation
from lgpl.callbacks.health import NaNGuard as NaNGuard
from lgpl.callbacks.health import TokenizerHealth as TokenizerHealth
from lgpl.callbacks.images import ReconstructionImages as ReconstructionImages
from lgpl.callbacks.images import SampleImages as SampleImages
from lgpl.callbacks.monitoring import CodebookHistogram as CodebookHistogram
from lgpl.callbacks.monitoring import GradientNorms as GradientNorms
from lgpl.callbacks.monitoring import HyperParameters as HyperParameters
from lgpl.callbacks.monitoring import SkippedSamples as SkippedSamples
from lgpl.callbacks.monitoring import Throughput as Throughput
