"""LoRA fine-tuning of vision-language models on shards made by ``vlmdata``."""

import logging

from vlmdata import __version__

__all__ = ["__version__"]

# Said on every import of peft where bitsandbytes runs on a CPU; there is nothing a user could do about it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
