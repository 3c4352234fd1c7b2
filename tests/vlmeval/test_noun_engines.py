from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from vlmdata.errors import ConfigError, DataError, DependencyError
from vlmeval.metrics import nouns_official, synonyms


def fake_nltk(has_data: bool) -> dict[str, types.ModuleType]:
    """nltk's interface as the engine uses it; its data cannot be had without network."""

    class Lemmatizer:
        def lemmatize(self, word: str) -> str:
            return word.removesuffix("s")

    def tokenize(text: str) -> list[str]:
        if not has_data:
            raise LookupError("punkt_tab")
        return text.replace(".", " .").split()

    nltk, stem = types.ModuleType("nltk"), types.ModuleType("nltk.stem")
    nltk.word_tokenize = tokenize  # type: ignore[attr-defined]
    nltk.pos_tag = lambda words: [(w, "NNS" if w[-1] == "s" else "VB") for w in words]  # type: ignore[attr-defined]
    stem.WordNetLemmatizer = Lemmatizer  # type: ignore[attr-defined]
    return {"nltk": nltk, "nltk.stem": stem}


def test_the_official_engine_tags_then_lemmatizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_nltk(True).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert nouns_official.load()("Trees and dogs sit.") == ["Tree", "dog"]


def test_the_official_engine_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_nltk(False).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ConfigError, match="python -m nltk.downloader punkt_tab"):
        nouns_official.load()
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(DependencyError, match="--nouns official needs nltk"):
        nouns_official.load()


def test_spacy_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doc:
        def __init__(self, word: str) -> None:
            self.word = word

        def similarity(self, other: Doc) -> float:
            return 0.81 if {self.word, other.word} == {"cat", "dog"} else 0.8

    spacy = types.ModuleType("spacy")
    spacy.load = lambda name: Doc  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    same, name = synonyms.load("official", ["dog", "cat", "bus"])
    assert name == "official"
    assert same("cat", "dog") and same("dog", "cat") and same("bus", "bus") and not same("bus", "cat")

    def missing(name: str) -> None:
        raise OSError("E050")

    spacy.load = missing  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="python -m spacy download en_core_web_lg"):
        synonyms.load("official", ["dog"])
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(DependencyError, match="--synonyms official .* needs spacy"):
        synonyms.load("official", ["dog"])


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("# two words a line\n\nboat\tship\n")
    same, name = synonyms.load(str(table), [])
    assert same("ship", "boat") and same("boat", "boat") and not same("boat", "car")
    assert name.startswith("table ") and len(name) == 18
    table.write_text("boat ship\n")
    with pytest.raises(DataError, match="line 1: expected two words"):
        synonyms.load(str(table), [])
    table.write_bytes(b"\xff")
    with pytest.raises(DataError, match="UTF-8"):
        synonyms.load(str(table), [])
    with pytest.raises(ConfigError, match="no such file; valid: exact, official"):
        synonyms.load("wordnet", [])
    assert synonyms.load("exact", [])[1] == "exact"
