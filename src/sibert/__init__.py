"""Pre-train BERT-class encoders with plain SGD: scale-invariant models, their optimizer and their instruments."""

__version__ = "0.1.0"
