"""Scores, reports and comparisons for vision-language models."""

from vlmdata import __version__

__all__ = ["__version__"]
