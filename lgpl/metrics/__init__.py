"""Feature extractors and metrics."""

from typing import TYPE_CHECKING

from lgpl.lazy import lazily

if TYPE_CHECKING:
    from lgpl.metrics.clip import CLIP, CLIPScore
    from lgpl.metrics.comparison import compute_metrics, left_out, retrieval_accuracy
    from lgpl.metrics.extractors import (
        EfficientNetLite0,
        Extractor,
        Features,
        Inception,
        load_extractor,
    )
    from lgpl.metrics.pairs import Similarity
    from lgpl.metrics.summary import FeatureSummary, ImageSet

RFID, GFID, COCO30K = "rfid", "gfid", "coco30k"  # protocols
GENEVAL, COMPOSED_EMOJI, PARTIPROMPTS = "geneval", "composed-emoji", "partiprompts"
CACHE = "runs/references"  # of reference statistics

__getattr__ = lazily(
    __name__,
    clip=("CLIP", "CLIPScore"),
    comparison=("compute_metrics", "left_out", "retrieval_accuracy"),
    extractors=("EfficientNetLite0", "Extractor", "Features", "Inception", "load_extractor"),
    pairs=("Similarity",),
    summary=("FeatureSummary", "ImageSet"),
)
