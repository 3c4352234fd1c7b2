"""The figures of ``benchmarks.gpu`` as tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.gpu_setting import SIDES

__all__ = ["differing", "ratios", "show", "step_seconds"]

# Of one (model, work): side -> its entry in each run; None where it failed.
Sides = dict[str, list[dict[str, Any] | None]]


def show(found: dict[str, Any]) -> None:
    """Print what ran, then what did not.

    Args:
        found: as the JSON file has it.
    """
    from rich.console import Console

    console = Console(width=150)
    about = found["about"]
    if "device_name" in about:
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        console.print(f"{about['device_name']}, {about['dtype']}, {versions}")
    if "rate" in about:
        console.print(f"large products: {about['rate'] / 1e12:.1f} TFLOP/s, which is 100 % below")
    else:
        why = about.get("rate_error", "no reason is known")
        console.print(f"large products, which would be 100 % below: not measured: {why}", style="red", markup=False)
    works = dict.fromkeys((entry["model"], entry["work"]) for entry in found["works"])
    for model, work in works:
        sides = _sides(found["works"], model, work)
        if any(entry for entries in sides.values() for entry in entries):
            target = about["targets"].get("ask" if work == "ask" else f"{model}, {work}")
            console.print((_asked if work == "ask" else _trained)(model, work, sides, about, target))
    for entry in found["works"]:
        if "error" in entry:
            name = f"{entry['model']}, {entry['work']}, {entry['side']}, run {entry['run'] + 1}"
            console.print(f"{name}: {entry['error']}", style="red", markup=False)


def _sides(works: list[dict[str, Any]], model: str, work: str) -> Sides:
    found: Sides = {side: [] for side in SIDES[work]}
    for entry in works:
        if (entry["model"], entry["work"]) == (model, work):
            found[entry["side"]].append(None if "error" in entry else entry)
    return found


def step_seconds(entry: dict[str, Any], kind: str = "seconds") -> float:
    """Median seconds of a run's steps, with a share of what was done before all of them; of ``ask`` the run's."""
    if "losses" not in entry:
        return float(entry["seconds"])
    return float(statistics.median(entry[kind]) + entry["reference_seconds"])


def ratios(sides: Sides, side: str, kind: str = "seconds") -> list[float]:
    """How many times longer the last side took, in each run in which both ran."""
    last = list(sides)[-1]
    pairs = zip(sides[side], sides[last], strict=False)
    return [step_seconds(theirs, kind) / step_seconds(ours, kind) for ours, theirs in pairs if ours and theirs]


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[float]:
    """Of each answer that is another: by how much theirs was ahead of the next.

    Of words in logits; of first-token probabilities as the part of their sum that Yes and No differ by.
    """
    if ours["words"]:
        words = zip(ours["words"], theirs["words"], theirs["gaps"], strict=True)
        return [gap for word, other, gap in words if word != other]
    mine, other = (list(zip(side["yes"], side["no"], strict=True)) for side in (ours, theirs))
    pairs = zip(mine, other, strict=True)
    return [abs(yes - no) / (yes + no) for said, (yes, no) in pairs if (said[0] > said[1]) != (yes > no)]


def _table(title: str, columns: tuple[str, ...]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "side" else "right")
    return table


def _title(model: str, work: str, sides: Sides, target: float | None) -> str:
    if target is None:
        return f"{model}, {work}"
    found = ratios(sides, next(iter(sides)))
    said = "not measured" if not found else "reached" if statistics.median(found) >= target else "missed"
    return f"{model}, {work}: target {target:g}x, {said}"


def _ratio(sides: Sides, side: str, kind: str = "seconds") -> str:
    found = ratios(sides, side, kind)
    return f"{statistics.median(found):.2f}x" if found else "-"


def _trained(model: str, work: str, sides: Sides, about: dict[str, Any], target: float | None) -> Any:
    columns = ("side", "s a step", "ratio", "ratio with data", "tokens/s", "peak GB", "needed %", "done %")
    title = _title(model, work, sides, target)
    table = _table(title, (*columns, "LM tokens", "tower", "loss", "differs by", "gradient differs by"))
    first = next(iter(sides))
    for side in sides:
        runs = [entry for entry in sides[side] if entry]
        if not runs:
            table.add_row(side, *["-"] * 12)
            continue
        seconds, some = statistics.median(map(step_seconds, runs)), runs[0]
        share = [_share(some[kind], seconds, about.get("rate")) for kind in ("needed", "done")]
        apart = [_apart(sides[first], sides[side], kind) for kind in ("losses", "gradients")]
        table.add_row(
            side,
            f"{seconds:.3f}",
            _ratio(sides, side),
            _ratio(sides, side, "whole_seconds"),
            f"{some['tokens'] / seconds:,.0f}",
            f"{max(entry['peak_bytes'] for entry in runs) / 1e9:.1f}",
            *share,
            f"{some['lm_tokens']:,}",
            f"{some['tower_images']:,}",
            f"{statistics.fmean(some['losses']):.4f}",
            *apart,
        )
    return table


def _share(operations: float | None, seconds: float, rate: float | None) -> str:
    if operations is None:
        return "-"
    return "not measured" if rate is None else f"{100 * operations / seconds / rate:.1f}"


def _apart(ours: list[dict[str, Any] | None], theirs: list[dict[str, Any] | None], kind: str) -> str:
    """The largest relative difference of a step's figure."""
    found = [
        abs(a - b) / max(abs(a), 1e-12)
        for one, other in zip(ours, theirs, strict=False)
        if one and other
        for a, b in zip(one[kind], other[kind], strict=True)
    ]
    return f"{max(found):.0e}" if found else "-"


def _asked(model: str, work: str, sides: Sides, about: dict[str, Any], target: float | None) -> Any:
    title = f"{_title(model, work, sides, target)}; {about['questions']} questions a picture"
    columns = ("side", "s", "questions/s", "ratio", "peak GB", "LM tokens", "tower", "other answers", "their lead")
    table = _table(title, (*columns, "probability differs by"))
    for side in sides:
        runs = [entry for entry in sides[side] if entry]
        if not runs:
            table.add_row(side, *["-"] * 9)
            continue
        seconds, some = statistics.median(map(step_seconds, runs)), runs[0]
        table.add_row(
            side,
            f"{seconds:.2f}",
            f"{some['asked'] / seconds:.1f}",
            _ratio(sides, side),
            f"{max(entry['peak_bytes'] for entry in runs) / 1e9:.1f}",
            f"{some['lm_tokens']:,}",
            f"{some['tower_images']:,}",
            *_against(some, sides[list(sides)[-1]][0]),
        )
    return table


def _against(ours: dict[str, Any], theirs: dict[str, Any] | None) -> tuple[str, str, str]:
    if theirs is None or ours is theirs:
        return "", "", ""
    leads = differing(ours, theirs)
    lead = f"up to {max(leads):.1e}" if leads else ""
    apart = max((abs(a - b) for a, b in zip(ours["yes"], theirs["yes"], strict=False)), default=None)
    return f"{len(leads)} of {ours['asked']}", lead, "" if apart is None else f"{apart:.0e}"
