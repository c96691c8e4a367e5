"""Feature extractors and figures."""

from lgpl.metrics.extractors import EfficientNetLite0
from lgpl.metrics.retrieval import retrieval_accuracy

__all__ = ["EfficientNetLite0", "retrieval_accuracy"]
