"""Sizes as people write them: ``100MB``, ``2GiB``."""

from __future__ import annotations

import re

from vlmdata.errors import ConfigError

__all__ = ["DEFAULT_SHARD_SIZE", "parse_size"]

DEFAULT_SHARD_SIZE = "100MB"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(value: int | str) -> int:
    """Bytes of a size like 5000, "100MB" or "2GiB".

    Raises:
        ConfigError: it is no size, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if match is None or match[2].upper() not in _UNITS or float(match[1]) * _UNITS[match[2].upper()] < 1:
        raise ConfigError(f"shard size is {value!r}, expected a number with an optional unit: 500MB, 1GB, 64MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
