"""The table of families and checks, and that the README shows it whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matrix

from vlmtrain import family as families

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"


def report(nodeid: str, outcome: str, when: str = "call", **notes: Any) -> Any:
    return SimpleNamespace(
        nodeid=nodeid,
        outcome=outcome,
        when=when,
        passed=outcome == "passed",
        user_properties=list(notes.items()),
    )


def test_outcomes_become_cells() -> None:
    found: dict[tuple[str, str], list[matrix.Outcome]] = {}
    for name, outcome, when, notes in (
        ("test_labels_are_the_answers_with_their_end_token[llava-own]", "passed", "call", {}),
        ("test_labels_are_the_answers_with_their_end_token[llava-family]", "failed", "call", {}),
        ("test_lora_goes_where_it_is_told[gemma3-projector]", "skipped", "setup", {}),
        ("test_lora_goes_where_it_is_told[gemma3-vision]", "passed", "call", {}),
        ("test_dpo_starts_at_ln_2[gemma3]", "skipped", "call", {}),
        ("test_merged_is_the_adapter[qwen2_5_vl]", "passed", "call", {"matrix": "2e-07"}),
        ("test_merged_is_the_adapter[qwen2_5_vl]", "passed", "teardown", {"matrix": "2e-07"}),
        ("test_sft_trains_every_part[llava]", "failed", "setup", {}),
        ("test_of_something_else[llava]", "failed", "call", {}),
    ):
        matrix.record(found, report(f"tests/x.py::{name}", outcome, when, **notes))
    lines = matrix.table(found, markdown=True).splitlines()
    cells = {row[0]: dict(zip(matrix.CHECKS, row[1:], strict=True)) for row in (parse(line) for line in lines[2:])}
    assert cells.keys() == {"`gemma3`", "`llava`", "`qwen2_5_vl`"}
    assert cells["`llava`"]["labels"] == cells["`llava`"]["SFT"] == "FAIL"
    assert cells["`gemma3`"]["parts"] == "pass" and cells["`gemma3`"]["DPO"] == "n.a."
    assert cells["`qwen2_5_vl`"]["merge"] == "pass 2e-07" and cells["`qwen2_5_vl`"]["SFT"] == "-"
    text = matrix.table(found)
    assert "labels           0 of 1 pass; llava FAIL" in text and "merge            1 of 1 pass" in text


def test_every_check_is_a_test() -> None:
    files = [*HERE.glob("test_famil*.py"), HERE / "test_sharing.py"]
    source = "".join(path.read_text() for path in files)
    for tests in matrix.CHECKS.values():
        for name in tests:
            assert f"def {name}(loaded: Loaded" in source or f"def {name}(\n    loaded: Loaded" in source, name


def test_the_readme_has_every_family_and_check() -> None:
    rows = [parse(line) for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head = ["family", *matrix.CHECKS]
    assert head in rows, "make the table: VLMTRAIN_MATRIX=FILE python -m pytest tests/vlmtrain/test_famil*.py"
    listed = {row[0].strip("`"): row[1:] for row in rows[rows.index(head) + 2 :] if len(row) == len(head)}
    for name in families.names():
        if families.load(name).task == "text":
            assert all(cell.startswith(("pass", "n.a.")) for cell in listed[name]), name


def parse(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
