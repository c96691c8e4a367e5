"""lgpl: train, evaluate and sample autoregressive image generators (LlamaGen, arXiv 2406.06525)."""

__version__ = "0.1.0"
