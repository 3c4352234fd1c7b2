"""Characters that look alike: V and U, 8 and S and 0, R and P.

Those three groups are the ones the write-up on plates tells its model to mind; the others are confusions of the same
kind that plates and serial numbers are known for. Two characters are alike where they stand in one group: O is like 0,
and 0 like 8, but O is not like 8.
"""

from __future__ import annotations

__all__ = ["GROUPS", "alike", "forgiven"]

GROUPS = (
    *("VU", "8S0", "RP"),
    *("0OQD", "1Il|", "17", "8B", "5S", "2Z", "6G", "CG", "UO", "EF", "MN", "VY", "38", "56", "9g", "4A"),
    *("0o", "1i", "2z", "5s", "9q", "vu", "vy", "ce", "nh", "rn"),
    *("Cc", "Kk", "Oo", "Pp", "Ss", "Uu", "Vv", "Ww", "Xx", "Zz"),
)
"""Characters of one group look alike. The last row is of letters that small and capital differ in size only."""

_PAIRS = frozenset(first + second for group in GROUPS for first in group for second in group if first != second)


def alike(first: str, second: str) -> bool:
    """Whether two different characters look alike."""
    return first + second in _PAIRS


def forgiven(answer: str, reference: str) -> bool:
    """Whether an answer is right, or would be if no character had been taken for one that looks like it."""
    return len(answer) == len(reference) and all(
        said == true or alike(said, true) for said, true in zip(answer, reference, strict=True)
    )
