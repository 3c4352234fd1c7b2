from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import amber_world
import numpy as np
import pytest
from click.testing import CliRunner, Result

from vlmdata.errors import DataError
from vlmeval.cli import main
from vlmeval.metrics import nouns, synonyms
from vlmeval.run import evaluate

VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)
ALIKE = {frozenset(("boat", "ship")): 0.87, frozenset(("dog", "cat")): 0.8, frozenset(("dog", "bus")): -0.1}


class Doc:
    """A text as spaCy's pipeline gives it back."""

    def __init__(self, word: str) -> None:
        self.word = word

    def similarity(self, other: Doc) -> float:
        return ALIKE.get(frozenset((self.word, other.word)), 0.25)


class Pipeline:
    """spaCy's interface as it is used; the model itself is 400 MB and needs a network."""

    meta = {"version": "3.8.0"}
    vocab = types.SimpleNamespace(vectors=types.SimpleNamespace(data=VECTORS))

    def __call__(self, word: str) -> Doc:
        return Doc(word)


@pytest.fixture
def spacy(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("spacy")
    module.load = lambda name: Pipeline()  # type: ignore[attr-defined]
    module.__version__ = "3.8.18"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", module)
    return module


def build(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["build-synonyms", *map(str, arguments)])


def test_the_table_of_the_official_vocabulary(spacy: types.ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.tsv"
    result = build("--out", out)
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert result.stdout == f"{out}: 418 words, sha256 {digest}\n"
    assert "build-synonyms: words: 418/418" in result.stderr
    lines = out.read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    vectors = hashlib.sha256(VECTORS.tobytes()).hexdigest()
    assert f"spaCy 3.8.18, en_core_web_lg 3.8.0, vectors sha256 {vectors}" in head[1]
    assert "418 words, 87153 pairs, 1 of them synonyms" in head[1]
    assert len(lines) - len(head) == 87_153 == 418 * 417 // 2
    same, name = synonyms.load(str(out), nouns.reviewed_words())
    assert same("ship", "boat") and not same("dog", "cat") and not same("dog", "bus") and same("dog", "dog")
    assert name == f"table {digest[:12]}" and synonyms.sha256(str(out)) == digest


def test_scoring_with_the_table_is_scoring_with_the_model(spacy: types.ModuleType, world: Path, tmp_path: Path) -> None:
    assert build("--out", tmp_path / "table.tsv", "--data", world).exit_code == 0
    answers = amber_world.respond(tmp_path / "r.json", {1: "a cat", 2: "a ship", 3: "a cat and a bus", 4: "a dog"})
    official = evaluate("amber", data=world, responses=answers, synonyms="official")
    table = evaluate("amber", data=world, responses=answers, synonyms=str(tmp_path / "table.tsv"))
    assert official["counts"] == table["counts"]
    assert official["protocol"]["synonyms"] == "official" and "synonyms_sha256" not in official["protocol"]


def test_nothing_is_replaced_unasked(spacy: types.ModuleType, world: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.tsv"
    out.write_text("mine")
    result = build("--out", out, "--data", world)
    assert result.exit_code == 2 and "--overwrite" in result.stderr and out.read_text() == "mine"
    assert build("--out", out, "--data", world, "--overwrite").exit_code == 0


def test_without_spacy_or_its_model(monkeypatch: pytest.MonkeyPatch, spacy: types.ModuleType, tmp_path: Path) -> None:
    def missing(name: str) -> None:
        raise OSError("E050")

    spacy.load = missing  # type: ignore[attr-defined]
    result = build("--out", tmp_path / "t.tsv")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "build-synonyms needs spaCy's model en_core_web_lg" in result.stderr
    monkeypatch.setitem(sys.modules, "spacy", None)
    result = build("--out", tmp_path / "t.tsv")
    assert result.exit_code == 2 and "build-synonyms needs spacy, which is not installed" in result.stderr
    assert not (tmp_path / "t.tsv").exists()


@pytest.mark.parametrize("line", ["dog\tcat\tmuch", "dog\tcat\t", "dog\tcat\t0.9\t1", "dog\tcat\tnan", "dog"])
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.tsv").write_text(f"boat\tship\n{line}\n")
    with pytest.raises(DataError, match="line 2"):
        synonyms.load(str(tmp_path / "t.tsv"), [])
