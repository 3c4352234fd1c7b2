"""Configurations for ``accelerate launch --config_file``: several GPUs, and models that do not fit on one."""

from __future__ import annotations

from importlib import resources

from vlmdata.errors import MissingError, choices

__all__ = ["launch_names", "launch_text"]


def launch_names() -> list[str]:
    """Names of the packaged configurations, sorted."""
    folder = resources.files("vlmtrain.launch")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def launch_text(name: str) -> str:
    """The YAML of a packaged configuration.

    Raises:
        MissingError: there is none of that name.
    """
    if name not in launch_names():
        raise MissingError(f"no launch configuration {name!r}; valid: {choices(launch_names())}")
    return (resources.files("vlmtrain.launch") / f"{name}.yaml").read_text(encoding="utf-8")
