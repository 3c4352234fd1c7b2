"""What was run for every family, as a table: families down, checks across.

Printed after every run of these tests; ``VLMTRAIN_MATRIX=FILE`` writes it as Markdown, for the README.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

__all__ = ["CHECKS", "FALLS_BACK", "Outcome", "record", "table"]

FALLS_BACK = "tower only:"
"""Begins the note of a family that cannot take a fast path, and why."""

# Check -> the tests that make it up.
CHECKS: dict[str, tuple[str, ...]] = {
    "labels": (
        "test_labels_are_the_answers_with_their_end_token",
        "test_a_prompt_is_the_beginning_of_its_training_row",
    ),
    "no leak": ("test_no_answer_leaks_into_its_prompt",),
    "alone = batch": ("test_rows_of_a_batch_are_the_same_alone", "test_preference_batch_is_both_rows"),
    "images": ("test_the_model_sees", "test_rows_with_no_one_and_three_images"),
    "generate": ("test_batched_generation_equals_single",),
    "lengths": (
        "test_image_tokens_are_known_from_the_size",
        "test_pictures_of_all_kinds",
        "test_rows_that_are_too_long",
    ),
    "budget": ("test_image_budget",),
    "template": ("test_a_missing_template_is_the_familys_and_kept",),
    "parts": ("test_lora_goes_where_it_is_told", "test_the_three_parts_are_all_linear_layers_of_the_model"),
    "SFT": ("test_sft_trains_every_part",),
    "DPO": ("test_dpo_starts_at_ln_2",),
    "reload": ("test_the_adapter_comes_back",),
    "merge": ("test_merged_is_the_adapter",),
    "checkpointing": ("test_gradient_checkpointing_changes_nothing",),
    "features": ("test_shared_features_change_nothing",),
    "prefix": ("test_a_shared_prefix_changes_nothing",),
    "one image": ("test_rows_on_one_image_change_nothing",),
}
_CHECK = {test: check for check, tests in CHECKS.items() for test in tests}
_NAME = re.compile(r"::(test_\w+)\[([a-z0-9_]+?)(?:-.*)?\]$")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one test for one family; ``note`` is what it measured."""

    result: str
    note: str = ""


def record(outcomes: dict[tuple[str, str], list[Outcome]], report: Any) -> None:
    """Take a pytest report into (family, check) -> outcomes, if it belongs to one."""
    found = _NAME.search(report.nodeid)
    if found is None or found[1] not in _CHECK or (report.when != "call" and report.passed):
        return
    notes = [str(value) for key, value in report.user_properties if key == "matrix" and report.when == "call"]
    result = {"passed": "pass", "failed": "FAIL", "skipped": "n.a."}[report.outcome]
    outcomes.setdefault((found[2], _CHECK[found[1]]), []).append(Outcome(result, " ".join(notes)))


def table(outcomes: dict[tuple[str, str], list[Outcome]], markdown: bool = False) -> str:
    """The table as text, or as Markdown with all its columns."""
    names = sorted({family for family, _ in outcomes})
    checks = [check for check in CHECKS if markdown or any((name, check) in outcomes for name in names)]
    cells = [[_cell(outcomes.get((name, check), [])) for check in checks] for name in names]
    if markdown:
        rows = [["family", *checks], ["---"] * (len(checks) + 1)]
        rows += [[f"`{name}`", *row] for name, row in zip(names, cells, strict=True)]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    lines = []
    for check, column in zip(checks, zip(*cells, strict=True), strict=True):
        # Few words where all agree: the table fits a terminal.
        run = [(name, cell) for name, cell in zip(names, column, strict=True) if cell != "-"]
        passed = [cell for _, cell in run if cell.startswith("pass")]
        odd = [f"{name} {cell}" for name, cell in run if not cell.startswith("pass") or FALLS_BACK in cell]
        lines.append(f"{check:<14} {len(passed):>3} of {len(run)} pass" + (f"; {', '.join(odd)}" if odd else ""))
    return "\n".join(lines)


def _cell(found: list[Outcome]) -> str:
    results = {outcome.result for outcome in found}
    worst = next((r for r in ("FAIL", "pass", "n.a.") if r in results), "-")
    return " ".join([worst, *dict.fromkeys(outcome.note for outcome in found if outcome.note)])
