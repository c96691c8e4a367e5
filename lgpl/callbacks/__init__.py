"""Callbacks to name in a config."""

from lgpl.callbacks.ema import EMA
from lgpl.callbacks.pictures import ReconstructionPictures, SamplePictures
from lgpl.callbacks.skipped import SkippedSamples
from lgpl.callbacks.throughput import Throughput

__all__ = ["EMA", "ReconstructionPictures", "SamplePictures", "SkippedSamples", "Throughput"]
