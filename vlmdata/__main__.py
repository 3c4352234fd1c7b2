"""``python -m vlmdata``."""

from __future__ import annotations

from vlmdata.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="vlmdata")
