"""Which words of a vocabulary mean the same: exactly equal, a table from a file, or spaCy's similarity.

The official AMBER script calls two words synonyms when spaCy's en_core_web_lg vectors are more than 0.8 similar. It
only ever asks about words of one vocabulary of 418, so all it needs of that model is one table: ``vlmeval
build-synonyms`` makes it once, and ``--synonyms FILE`` scores with it wherever the model is not.

A table is text: comments with ``#``, and a pair of words a line, tabs between them; with their similarity after them
they are synonyms above 0.8, without they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, DependencyError
from vlmeval.metrics.chair import Synonyms, exact

__all__ = ["SIMILAR", "build", "load", "sha256"]

SIMILAR = 0.8
_MODEL = "en_core_web_lg"


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
    words = sorted(set(vocabulary))
    if name == "official":
        pairs = _pairs(_spacy("--synonyms official (the default of --nouns official)", "--synonyms exact"), words)
        return _table((one, other) for one, other, alike in pairs if alike > SIMILAR), "official"
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"--synonyms is {name!r}: no such file; valid: exact, official or a file of pairs")
    raw = path.read_bytes()
    return _table(_file_pairs(path, raw)), f"table {hashlib.sha256(raw).hexdigest()[:12]}"


def sha256(name: str) -> str | None:
    """The sha256 of a table's file; None for a rule that is no file."""
    return None if name in ("exact", "official") else hashlib.sha256(Path(name).read_bytes()).hexdigest()


def build(vocabulary: Iterable[str], advance: Callable[[int], None] = lambda count: None) -> str:
    """The table of a vocabulary: the similarity of every two of its words, as text.

    Args:
        vocabulary: V words.
        advance: called after each of V words.

    Returns:
        A head comment that names spaCy's version, the model's and the sha256 of its vectors; then V (V - 1) / 2 lines.

    Raises:
        DependencyError: spaCy is not installed.
        ConfigError: its model is not.
    """
    words = sorted(set(vocabulary))
    nlp = _spacy("build-synonyms", "make the table on a machine that has it")
    rows = list(_pairs(nlp, words, advance))
    above = sum(alike > SIMILAR for _, _, alike in rows)
    head = [
        "Similarity of every two words, for --synonyms; two are synonyms above 0.8, as in AMBER's script.",
        f"{_version(nlp)}; {len(words)} words, {len(rows)} pairs, {above} of them synonyms",
    ]
    lines = [f"# {line}" for line in head]
    return "\n".join([*lines, *(f"{one}\t{other}\t{alike!r}" for one, other, alike in rows)]) + "\n"


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
        if len(words) not in (2, 3) or not all(words):
            raise DataError(f"{path}, line {number}: expected two words with a tab between them, got {line!r:.80}")
        if len(words) == 2 or _similarity(words[2], f"{path}, line {number}") > SIMILAR:
            pairs.append((words[0], words[1]))
    return pairs


def _similarity(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{where}: the similarity is {text!r:.40}, expected a number after the two words")
    return value


def _spacy(purpose: str, instead: str) -> Any:
    try:
        import spacy

        return spacy.load(_MODEL)
    except ImportError:
        raise DependencyError("spacy", "amber", purpose) from None
    except OSError:
        raise ConfigError(
            f"{purpose} needs spaCy's model {_MODEL}, which is not installed: python -m spacy download {_MODEL}; "
            f"or {instead}"
        ) from None


def _pairs(
    nlp: Any, words: Sequence[str], advance: Callable[[int], None] = lambda count: None
) -> Iterable[tuple[str, str, float]]:
    docs = [nlp(word) for word in words]
    for place, one in enumerate(docs):
        for before, other in enumerate(docs[:place]):
            yield words[place], words[before], float(one.similarity(other))
        advance(1)


def _version(nlp: Any) -> str:
    """Versions of spaCy and the model, and what its vectors are."""
    import numpy as np
    import spacy

    vectors = hashlib.sha256(np.ascontiguousarray(nlp.vocab.vectors.data).tobytes()).hexdigest()
    return f"spaCy {spacy.__version__}, {_MODEL} {nlp.meta['version']}, vectors sha256 {vectors}"
