"""Raw image-text data in, canonical message and preference shards out."""

__version__ = "0.1.0"

__all__ = ["__version__"]
