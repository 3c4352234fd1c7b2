"""Answers from a file: nothing is generated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vlmeval.responses import read
from vlmeval.task import Response

__all__ = ["Replay"]


class Replay:
    """A responses file.

    Attributes:
        responses: its answers in file order, duplicates included.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            MissingError: there is no such file.
            DataError: it is not a responses file.
        """
        self.path = path
        self.responses: list[Response] = read(path)

    def describe(self) -> dict[str, Any]:
        """What the report says about where the answers come from."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"kind": "responses", "file": str(self.path), "sha256": digest, "rows": len(self.responses)}
