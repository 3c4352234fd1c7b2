"""How much memory a run took: what was there before training, the peak, and what training added.

The figures are those of Unsloth's notebooks: memory reserved at the start, peak reserved, the difference, and shares of
the card. Without a GPU they are the process's own, from the kernel.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["Memory", "lines", "machine_memory", "peak_memory"]

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Most bytes in use so far: on the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return _process("VmHWM")


class Memory:
    """Begun when the model is loaded, asked when training is over."""

    def __init__(self) -> None:
        """Note what is in use."""
        self.gpu = torch.cuda.is_available()
        self.start = int(torch.cuda.max_memory_reserved()) if self.gpu else _process("VmRSS")

    def report(self) -> dict[str, Any]:
        """Bytes: ``total`` of the device, at ``start``, at the ``peak``, and what the peak is above the start."""
        # The kernel's two figures are not exact to the page.
        peak = max(self.start, int(torch.cuda.max_memory_reserved()) if self.gpu else _process("VmHWM"))
        name = torch.cuda.get_device_name(0) if self.gpu else "cpu"
        total = int(torch.cuda.get_device_properties(0).total_memory) if self.gpu else machine_memory()
        return {
            "device": name,
            "total_bytes": total,
            "start_bytes": self.start,
            "peak_bytes": peak,
            "training_bytes": max(0, peak - self.start),
            "peak_percent": round(100 * peak / total, 1),
            "training_percent": round(100 * max(0, peak - self.start) / total, 1),
        }


def lines(report: Mapping[str, Any], seconds: float) -> list[str]:
    """The report in words, for a terminal of 80 columns."""
    gib = {name: f"{report[f'{name}_bytes'] / 2**30:.2f}" for name in ("total", "start", "peak", "training")}
    return [
        f"memory {report['device']}, {gib['total']} GiB; {seconds / 60:.1f} minutes",
        f"       {gib['start']} before training, peak {gib['peak']} ({report['peak_percent']:g} %),"
        f" {gib['training']} of it for training ({report['training_percent']:g} %)",
    ]


def _process(field: str) -> int:
    """A figure of this process in bytes; ``ru_maxrss`` of a child starts at its parent's, so it is the last resort."""
    try:
        text = _STATUS.read_text(encoding="ascii")
        return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(field + ":"))
    except (OSError, StopIteration, ValueError):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(used if sys.platform == "darwin" else used * 1024)


def machine_memory() -> int:
    """Memory this process may use: the machine's, or a container's where it is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return machine
    return min(machine, limit)
