"""Metrics as plain functions, and as ``evaluate.Metric`` modules: ``evaluate.load(path(NAME))``, without network."""

from __future__ import annotations

from pathlib import Path

from vlmdata.errors import MissingError, choices

__all__ = ["MODULES", "path"]

MODULES = ("amber_discriminative", "amber_generative", "caption", "classification", "ocr", "pope", "preference", "vqa")


def path(name: str) -> str:
    """Where a metric module lies, for ``evaluate.load``.

    Raises:
        MissingError: there is no such metric.
    """
    if name not in MODULES:
        raise MissingError(f"no metric module named {name!r}; valid: {choices(MODULES)}")
    return str(Path(__file__).with_name(f"{name}.py"))
