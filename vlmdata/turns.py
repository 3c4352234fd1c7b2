"""Turns of many rows at a time, counted by Arrow: roles, lengths, short texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["SHORT_TEXT", "Turns"]

SHORT_TEXT = 40
"""Texts up to this many characters are told one by one."""

_WORD = r"[^\s\p{Z}]+"


class Turns:
    """A column of turns: for each turn its row, its role, and how long its text is.

    Attributes:
        roles: turns by role.
        characters: of each turn, over all its parts.
        words: of each turn; what stands between spaces is a word.
    """

    def __init__(self, column: pa.Array) -> None:
        """Of a column of messages."""
        import pyarrow.compute as pc

        turns = column.flatten()
        content = pc.struct_field(turns, "content")
        parts = content.flatten()
        self._texts = pc.struct_field(parts, "text")
        self._role = pc.struct_field(turns, "role")
        self._row = pc.list_parent_indices(column).to_numpy()
        self._turn = pc.list_parent_indices(content).to_numpy()
        self._count = len(turns)
        self.roles: dict[str, int] = {item["values"]: item["counts"] for item in self._role.value_counts().to_pylist()}
        self.characters: NDArray[np.int64] = self._per_turn(pc.utf8_length(self._texts))
        self.words: NDArray[np.int64] = self._per_turn(pc.count_substring_regex(self._texts, _WORD))

    def _per_turn(self, values: pa.Array) -> NDArray[np.int64]:
        import numpy as np
        import pyarrow.compute as pc

        weights = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
        return np.bincount(self._turn, weights, self._count).astype(np.int64)

    def per_row(self, rows: int) -> NDArray[np.int64]:
        """Turns in each row."""
        import numpy as np

        return np.bincount(self._row, minlength=rows)

    def sums(self, values: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """Sums over the turns of each row."""
        import numpy as np

        return np.bincount(self._row, values, rows).astype(np.int64)

    def is_role(self, role: str) -> NDArray[np.bool_]:
        """Which turns are of a role."""
        import pyarrow.compute as pc

        found: NDArray[np.bool_] = pc.equal(self._role, role).to_numpy(zero_copy_only=False)
        return found

    def short_texts(self, wanted: NDArray[np.bool_]) -> dict[str, int]:
        """Counts of the short texts of the wanted turns that consist of a single part."""
        import numpy as np

        single = np.bincount(self._turn, minlength=self._count) == 1
        take = (wanted & single & (self.characters <= SHORT_TEXT))[self._turn]
        counted = self._texts.filter(take).drop_null().value_counts()
        return {item["values"]: item["counts"] for item in counted.to_pylist()}
