"""``python -m vlmeval``."""

from __future__ import annotations

from vlmeval.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="vlmeval")
