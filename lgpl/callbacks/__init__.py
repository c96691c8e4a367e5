"""Callbacks to name in a config."""

from lgpl.callbacks.checkpoint import LastCheckpoint
from lgpl.callbacks.code_shards import CodeShardWriter
from lgpl.callbacks.ema import EMA
from lgpl.callbacks.evaluation import GenerationEvaluation, ReconstructionEvaluation
from lgpl.callbacks.health import NaNGuard, TokenizerHealth
from lgpl.callbacks.images import ReconstructionImages, SampleImages
from lgpl.callbacks.monitoring import CodebookHistogram, GradientNorms, HyperParameters
from lgpl.callbacks.skipped import SkippedSamples
from lgpl.callbacks.throughput import Throughput

__all__ = [
    "LastCheckpoint",
    "CodeShardWriter",
    "CodebookHistogram",
    "EMA",
    "GenerationEvaluation",
    "GradientNorms",
    "HyperParameters",
    "NaNGuard",
    "ReconstructionEvaluation",
    "ReconstructionImages",
    "SampleImages",
    "SkippedSamples",
    "Throughput",
    "TokenizerHealth",
]
