"""Feature extractors and figures."""

from lgpl.metrics.extractors import (
    EfficientNetLite0,
    Extractor,
    Features,
    Inception,
    load_extractor,
)
from lgpl.metrics.pairs import CLIPScore, Similarity
from lgpl.metrics.retrieval import retrieval_accuracy
from lgpl.metrics.summary import ImageSet, Summary, figures

__all__ = [
    "CLIPScore",
    "EfficientNetLite0",
    "Extractor",
    "Features",
    "ImageSet",
    "Inception",
    "Similarity",
    "Summary",
    "figures",
    "load_extractor",
    "retrieval_accuracy",
]
