"""``python -m vlmtrain``, which ``torchrun -m vlmtrain`` and ``accelerate launch -m vlmtrain`` start."""

from __future__ import annotations

from vlmtrain.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main(prog_name="vlmtrain")
