"""distmeta: distributed meta-pretraining of language models on Ray and DeepSpeed."""

__version__ = "0.1.0"
