"""Feature extractors and metrics."""

from lgpl.metrics.comparison import compute_metrics as compute_metrics
from lgpl.metrics.comparison import left_out as left_out
from lgpl.metrics.comparison import retrieval_accuracy as retrieval_accuracy
from lgpl.metrics.extractors import EfficientNetLite0 as EfficientNetLite0
from lgpl.metrics.extractors import Extractor as Extractor
from lgpl.metrics.extractors import Features as Features
from lgpl.metrics.extractors import Inception as Inception
from lgpl.metrics.extractors import load_extractor as load_extractor
from lgpl.metrics.pairs import CLIPScore as CLIPScore
from lgpl.metrics.pairs import Similarity as Similarity
from lgpl.metrics.summary import FeatureSummary as FeatureSummary
from lgpl.metrics.summary import ImageSet as ImageSet
