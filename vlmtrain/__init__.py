"""LoRA fine-tuning of vision-language models on shards made by ``vlmdata``."""

from vlmdata import __version__

__all__ = ["__version__"]
