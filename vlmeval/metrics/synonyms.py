"""Which words of a vocabulary mean the same: exactly equal, a table from a file, or spaCy's similarity.

The official AMBER script calls two words synonyms when spaCy's en_core_web_lg vectors are more than 0.8 similar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from vlmdata.errors import ConfigError, DataError, DependencyError
from vlmeval.metrics.chair import Synonyms, exact

__all__ = ["SIMILAR", "load"]

SIMILAR = 0.8


def load(name: str, vocabulary: Iterable[str]) -> tuple[Synonyms, str]:
    """The synonym rule of that name, and how the report calls it.

    Args:
        name: ``exact``, ``official`` or the path of a table: one pair of words a line, tab between them.
        vocabulary: the words that will be asked about.

    Raises:
        ConfigError: neither a known name nor a file.
        DataError: the table is malformed.
        DependencyError: spaCy or its model is not installed.
    """
    if name == "exact":
        return exact, "exact"
    if name == "official":
        return _table(_spacy_pairs(sorted(set(vocabulary)))), "official"
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--synonyms is {name!r}: no such file; valid: exact, official or a file of pairs")
    raw = path.read_bytes()
    return _table(_file_pairs(path, raw)), f"table {hashlib.sha256(raw).hexdigest()[:12]}"


def _table(pairs: Iterable[tuple[str, str]]) -> Synonyms:
    same = {frozenset(pair) for pair in pairs}
    return lambda one, other: one == other or frozenset((one, other)) in same


def _file_pairs(path: Path, raw: bytes) -> list[tuple[str, str]]:
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split("\t")
        if len(words) != 2 or not all(words):
            raise DataError(f"{path}, line {number}: expected two words with a tab between them, got {line!r:.80}")
        pairs.append((words[0], words[1]))
    return pairs


def _spacy_pairs(words: list[str]) -> list[tuple[str, str]]:
    try:
        import spacy

        nlp = spacy.load("en_core_web_lg")
    except ImportError:
        raise DependencyError("spacy", "amber", "--synonyms official (the default of --nouns official)") from None
    except OSError:
        raise ConfigError(
            "--synonyms official needs spaCy's model en_core_web_lg, which is not installed: "
            "python -m spacy download en_core_web_lg; or use --synonyms exact"
        ) from None
    docs = [nlp(word) for word in words]
    return [
        (words[i], words[j])
        for i, one in enumerate(docs)
        for j, other in enumerate(docs[:i])
        if one.similarity(other) > SIMILAR
    ]
