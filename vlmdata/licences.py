"""What a licence says about commercial use, as far as a line of text can be read."""

from __future__ import annotations

import re

__all__ = ["non_commercial"]

# "Commercial and non-commercial use" allows both, and "not limited to non-commercial use" limits nothing.
_BOTH = re.compile(
    r"\bcommercial(?:ly)?(?: use)?,? (?:and|or|as well as) non ?commercial"
    r"|\bnon ?commercial(?:ly)?(?: use)?,? (?:and|or|as well as) commercial"
    r"|\bnot (?:limited|restricted) to (?:non ?commercial|research)"
    r"|\bnot (?:only|just) for (?:non ?commercial|research)"
)
_USE = r"(?:academic|research|educational|education|evaluation|personal|private|scientific|teaching|non ?profit)"
_USES = rf"(?:\w+ )??{_USE}(?:(?:,| and| or|/)+ ?(?:\w+ )??{_USE})*"
_NON_COMMERCIAL = re.compile(
    r"\bcc(?: by)?(?: \w+)? nc\b"  # CC-BY-NC-4.0, CC BY-NC-SA, cc-nc
    r"|\bby nc\b"
    r"|\bnon ?commercial"
    r"|\b(?:not?|without|never)(?: be used)?(?: for| any)? commercial"
    r"|\bcommercial (?:use|usage|purposes) (?:is |are )?(?:not|prohibited|forbidden|disallowed|excluded)"
    r"|\bprohibits? commercial"
    rf"|\b{_USES}(?: use| usage| purposes?)? only\b"
    rf"|\b(?:only|solely|exclusively|strictly)(?: be used)?(?: for| in)? {_USES}\b"
    rf"|\b(?:limited|restricted) to {_USES}\b"
)


def non_commercial(licence: str) -> bool:
    """Whether a licence, as a dataset or a model states it, keeps commercial use out.

    CC-BY-NC in any spelling, "non-commercial", "research only", "for academic use only" and the like. It reads the
    words and is no legal advice: False means that nothing of the kind is said, not that it is allowed.
    """
    words = re.sub(r"[\s_\-‐‑–]+", " ", licence.lower()).strip()
    return bool(_NON_COMMERCIAL.search(_BOTH.sub(" ", words)))
