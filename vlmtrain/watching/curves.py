"""Curves of a run: ``curves.png`` for the run folder's card, and a line of small bars for the terminal.

Both are drawn from ``log.jsonl``, so a run that was resumed has all of its steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FILE", "draw", "read_log", "sparkline"]

FILE = "curves.png"
_BARS = "▁▂▃▄▅▆▇█"
_LEFT = 0.75
"""Inches for the numbers of a vertical axis."""
_COLOURS = ("#2563a8", "#d1622b", "#3c8d40", "#8d3c86")
Panel = tuple[str, Sequence[tuple[str, str]]]
# Title -> (key, label) of its lines; a panel is drawn when the log has one of them.
_PANELS: Sequence[Panel] = (
    ("Loss", (("loss", "training"), ("eval_loss", "held out"))),
    ("Reward accuracy", (("reward_accuracy", "training"), ("eval_reward_accuracy", "held out"))),
    ("Reward margin", (("reward_margin", "training"), ("eval_reward_margin", "held out"))),
    ("Image margin (mDPO)", (("image_margin", "training"), ("eval_image_margin", "held out"))),
    ("Rewards", (("reward_chosen", "chosen"), ("reward_rejected", "rejected"))),
)
_CLASSES: Panel = (
    "Classes held out",
    (("eval_top5", "top 5"), ("eval_accuracy", "accuracy"), ("eval_f1_macro", "macro F1")),
)

Entry = Mapping[str, Any]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``log.jsonl``, by step; a line that was cut short is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(dict(json.loads(line)))
        except ValueError:
            continue
    return sorted(entries, key=lambda entry: entry["step"])


def sparkline(entries: Sequence[Entry], key: str = "loss", width: int = 40) -> str:
    """A figure over the run as bars of eight heights; means where there are more steps than columns."""
    values = [entry[key] for entry in entries if key in entry and math.isfinite(entry[key])]
    if len(values) < 2:
        return ""
    columns = min(width, len(values))
    edges = [place * len(values) // columns for place in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, span = min(means), max(means) - min(means)
    bars = "".join(_BARS[min(7, int(8 * (mean - low) / span))] if span else _BARS[3] for mean in means)
    return f"{bars}  {values[0]:.3f} → {values[-1]:.3f}"


def draw(entries: Sequence[Entry], path: Path, *, metric: str = "loss", best: int | None = None) -> bool:
    """Draw all figures that a log holds; False where it holds too few.

    Args:
        entries: of the log, by step.
        path: of the picture.
        metric: of ``eval_metric``; where it is a figure of written answers it gets a panel of its own.
        best: step whose weights the run ended with, marked in every panel.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = [*_PANELS, *_answers(entries, metric)]
    found = [(title, lines) for title, of in panels if (lines := _lines(entries, of))]
    if not any(len(steps) > 1 for _, lines in found for steps, _, _ in lines):
        return False
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    width, height = 5.2 * columns, 3.2 * rows
    figure = Figure(figsize=(width, height), dpi=110)
    # Room for labels in inches, fixed: matplotlib's layout engines draw everything twice to measure it.
    figure.subplots_adjust(
        left=_LEFT / width,
        right=1 - 0.15 / width,
        bottom=0.5 / height,
        top=1 - 0.35 / height,
        wspace=(_LEFT + 0.15) / (5.2 - _LEFT - 0.15),
        hspace=0.85 / (3.2 - 0.85),
    )
    for number, (title, lines) in enumerate(found, 1):
        axes = figure.add_subplot(rows, columns, number)
        for (steps, values, label), colour in zip(lines, _COLOURS, strict=False):
            marker = "o" if len(steps) < 25 else None
            axes.plot(steps, values, label=label, color=colour, linewidth=1.4, marker=marker, markersize=3)
        if best is not None:
            axes.axvline(best, color="#888888", linewidth=0.9, linestyle="--", label=f"kept: step {best}")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        if len(axes.get_lines()) > 1:
            axes.legend(fontsize=8, frameon=False)
    figure.savefig(str(path), metadata={"Software": None})
    return True


def _answers(entries: Sequence[Entry], metric: str) -> list[Panel]:
    """Panels for a classifier's figures, or for that of written answers, and for AMBER's."""
    names = {key for entry in entries for key in entry}
    if "eval_f1_macro" in names:
        return [_CLASSES]
    panels: list[Panel] = []
    if metric != "loss" and not metric.startswith("amber_"):
        panels.append((f"{metric} of written answers", [(f"eval_{metric}", "held out")]))
    amber = ("accuracy", "f1", "chair", "hal")
    return [*panels, ("AMBER", [(f"eval_amber_{name}", name) for name in amber])]


def _lines(entries: Sequence[Entry], of: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[float], str]]:
    lines = []
    for key, label in of:
        points = {entry["step"]: entry[key] for entry in entries if key in entry and math.isfinite(entry[key])}
        if points:
            lines.append((list(points), list(points.values()), label))
    return lines
