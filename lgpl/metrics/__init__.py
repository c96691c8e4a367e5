"""Feature extractors and metrics."""

from lgpl.metrics.comparison import compute_metrics, retrieval_accuracy
from lgpl.metrics.extractors import (
    EfficientNetLite0,
    Extractor,
    Features,
    Inception,
    load_extractor,
)
from lgpl.metrics.pairs import CLIPScore, Similarity
from lgpl.metrics.summary import FeatureSummary, ImageSet

__all__ = [
    "CLIPScore",
    "EfficientNetLite0",
    "Extractor",
    "Features",
    "ImageSet",
    "Inception",
    "Similarity",
    "FeatureSummary",
    "compute_metrics",
    "load_extractor",
    "retrieval_accuracy",
]
