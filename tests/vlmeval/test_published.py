from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import amber_world
import pytest

from vlmeval import official, published
from vlmeval.run import evaluate
from vlmeval.task import load, names

ROWS = {
    "GPT-4o": (88.8, 91.6),
    "Idefics2 + DPO": (85.9, 89.4),
    "Idefics2": (85.8, 89.1),
    "GPT-4v": (83.4, 87.4),
    "MiniGemini": (82.6, 87.6),
    "LLaVA-NeXT": (81.4, 85.4),
    "QWEN-VL": (81.9, 86.4),
    "LURE": (73.5, 77.7),
    "OPERA": (75.2, 78.3),
    "Less-is-more": (72.4, 75.8),
    "VCD": (71.8, 74.9),
}


def scored(data: Path, answers: Path, **settings: Any) -> dict[str, Any]:
    return evaluate("amber", data=data, responses=answers, **settings)


def test_the_table_of_the_dpo_post() -> None:
    rows = {row.name: row for row in published.rows("amber")}
    for name, (accuracy, f1) in ROWS.items():
        assert rows[name].figures == {"accuracy": accuracy, "f1": f1}
        assert "huggingface.co/blog/dpo_vlm" in rows[name].source


def test_amber_scores_follow_from_their_parts() -> None:
    """What the paper prints agrees with its formula, to its rounding."""
    whole = [row for row in published.rows("amber") if {"f1", "chair", "amber_score"} <= row.figures.keys()]
    assert len(whole) == 4
    for row in whole:
        figures = row.figures
        assert (100 - figures["chair"] + figures["f1"]) / 2 == pytest.approx(figures["amber_score"], abs=0.051)


def test_every_row_is_whole() -> None:
    for name in names():
        task = load(name)
        for row in published.rows(name):
            assert row.name and row.protocol and "https://" in row.source and row.figures
            assert len({other.name for other in published.rows(name)}) == len(published.rows(name))
            for key, value in row.figures.items():
                group, _, metric = key.rpartition(".")
                assert any(m.name == metric and (not group or group in m.groups) for m in task.metrics)
                assert 0 <= value <= 100


def test_rows_stand_beside_a_run_on_the_official_data(real: Path) -> None:
    report = scored(real, real / "golden" / "d_flip10" / "responses.json")
    found = report["published"]
    assert [column["key"] for column in found["columns"]] == ["accuracy", "f1"]
    assert found["own"] == {"accuracy": 89.6, "f1": 91.9}
    assert {row["name"] for row in found["rows"]} >= set(ROWS)
    assert found["warnings"] == []
    captions = scored(real, real / "golden" / "g_mixed" / "responses.json")["published"]
    assert captions["own"] == {"chair": 17.8, "cover": 67.4, "hal": 61.6, "cog": 17.8}
    assert len(captions["rows"]) == 5
    assert "embedded engine with synonyms exact" in captions["warnings"][0]


def test_a_part_without_published_figures_has_none(real: Path) -> None:
    report = scored(real, real / "golden" / "d_existence_only" / "responses.json", part="existence")
    assert "published" not in report


def test_what_differs_is_said(real: Path, tmp_path: Path) -> None:
    half = scored(real, real / "golden" / "d_half_ids" / "responses.json")["published"]["warnings"]
    assert half == ["This run is PARTIAL, 7179 of 14216 items; published are all."]
    rows = json.loads((real / "golden" / "d_flip10" / "responses.json").read_text())
    for row in rows[:100]:
        row["response"] += "."
    (tmp_path / "r.json").write_text(json.dumps(rows))
    (warning,) = scored(real, tmp_path / "r.json", read_answers="word")["published"]["warnings"]
    assert "could not read 100 of 14216 answers" in warning
    report = scored(real, real / "golden" / "d_flip10" / "responses.json", read_answers="word")
    assert report["published"]["warnings"] == []
    report["protocol"]["answers"] |= {"prompt_suffix": "Answer yes or no.", "answers": "logits"}
    suffix, logits = published.warnings(report)
    assert "'Answer yes or no.'" in suffix and "first-token probabilities" in logits


def test_other_data_have_no_published_figures(world: Path, tmp_path: Path) -> None:
    answers = amber_world.respond(tmp_path / "r.json", amber_world.truthful())
    found = scored(world, answers)["published"]
    assert found["rows"] == [] and found["columns"] == []
    assert found["warnings"] == [
        "Published figures are left out: annotations.json, relation.json, safe_words.txt are not the official files, "
        "so this is another benchmark than the published AMBER."
    ]


def test_a_task_of_ones_own_is_no_published_one(real: Path) -> None:
    report = scored(real, real / "golden" / "d_all_no" / "responses.json")
    assert published.beside("amber", {**report, "task_file": {"path": "amber.py", "sha256": ""}}) is None
    assert published.beside("vqa", {**report, "task": "vqa"}) is None
    assert published.warnings({**report, "task": "vqa"}) == []


def test_checksums_decide_not_names(real: Path, tmp_path: Path) -> None:
    shutil.copytree(real, tmp_path / "amber", ignore=shutil.ignore_patterns("golden"))
    for path in (tmp_path / "amber").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "amber" / "safe_words.txt").write_text("orange\n")
    report = scored(tmp_path / "amber", real / "golden" / "d_all_no" / "responses.json")
    assert report["published"]["rows"] == [] and "safe_words.txt" in report["published"]["warnings"][0]
    assert report["protocol"]["data"]["annotations.json"] == official.digests("amber")["annotations.json"]
