"""Everything that can go wrong through a user's doing, as one tree.

VlmError
├── ConfigError (ValueError)          an option, recipe key or combination that cannot work
├── DataError (ValueError)            input of the wrong shape: wrong source, wrong columns, unfinished shards
├── MissingError (FileNotFoundError)  a file, folder, model or source that is not there
├── OutputExistsError (FileExistsError)  output would be overwritten unasked
├── DependencyError (ImportError)     an optional package is not installed
└── RecordError (ValueError)          one row cannot become a record; counted, never fatal by itself

The command line prints a ``VlmError`` as one line and ends with status 2; any other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "DependencyError",
    "MissingError",
    "OutputExistsError",
    "RecordError",
    "VlmError",
    "choices",
]


class VlmError(Exception):
    """Base of all errors a user can cause; ``str(error)`` is one line."""


class ConfigError(VlmError, ValueError):
    """An option, a recipe key or a combination of them cannot work."""


class DataError(VlmError, ValueError):
    """The input has the wrong shape."""


class MissingError(VlmError, FileNotFoundError):
    """Something named by the user does not exist."""

    def __str__(self) -> str:
        """The message alone, not the errno form of ``OSError``."""
        return str(self.args[0]) if self.args else ""


class OutputExistsError(VlmError, FileExistsError):
    """Existing output would be overwritten."""

    def __str__(self) -> str:
        """The message alone, not the errno form of ``OSError``."""
        return str(self.args[0]) if self.args else ""


class DependencyError(VlmError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Name the package, the extra that brings it, and what needs it."""
        super().__init__(package, extra, purpose)
        self.package, self.extra, self.purpose = package, extra, purpose

    def __str__(self) -> str:
        """One line with the command that installs the package."""
        return f"{self.purpose} needs {self.package}, which is not installed: pip install 'vlm-toolkit[{self.extra}]'"


class RecordError(VlmError, ValueError):
    """One row cannot become a record.

    Args:
        reason: a word of ``vlmdata.reasons.REASONS``, the same for every row with this fault, so that rejects can
            be counted.
        detail: what exactly was found in this row.
        raw: the bytes of a row that could not even be read, for the quarantine.
    """

    def __init__(self, reason: str, detail: str = "", raw: bytes | None = None) -> None:
        """Keep reason and detail apart so that reasons aggregate."""
        super().__init__(reason, detail, raw)
        self.reason, self.detail, self.raw = reason, detail, raw

    def __str__(self) -> str:
        """``reason: detail``."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def choices(names: Iterable[str]) -> str:
    """The valid choices as the tail of an error message: ``a, b, c``."""
    return ", ".join(sorted(names)) or "(none)"
