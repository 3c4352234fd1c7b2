"""``KEY=VALUE`` texts of a command line."""

from __future__ import annotations

from collections.abc import Sequence

from vlmdata.errors import ConfigError

__all__ = ["pairs"]


def pairs(given: Sequence[str], flag: str = "--set") -> dict[str, str]:
    """Key to value; dashes of a key are underscores.

    Raises:
        ConfigError: a text is not of that form, or a key is given twice.
    """
    found: dict[str, str] = {}
    for item in given:
        name, sign, value = item.partition("=")
        key = name.strip().replace("-", "_")
        if not sign or not key:
            raise ConfigError(f"{flag} {item!r}: expected KEY=VALUE")
        if key in found:
            raise ConfigError(f"{flag} {name.strip()} is given twice: {found[key]!r} and {value!r}")
        found[key] = value
    return found
