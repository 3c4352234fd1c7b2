"""How the cost of a training step grows: ``python -m benchmarks.growth``.

Seconds and memory of one step against image tokens (DPO of two pairs) and against questions on one image (SFT), ours
beside TRL's with its GPU code path forced on the CPU; model and ways of ``benchmarks.steps``. Prints tables, draws a
plot with ``--plot``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.llava_576 import SIDE, make_model, write_pairs, write_questions
from benchmarks.steps import PAIRS, take_turns

__all__ = ["main"]

# Pixels of a side -> 64, 256, 576, 1024, 2025 image tokens.
SIDES = (112, 224, 336, 448, 630)
QUESTIONS = (1, 2, 4, 8, 16, 32)
WAYS = ("vlmtrain", "compact")


def main() -> None:
    """Measure both, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="*", default=list(SIDES), help="of images, in pixels")
    parser.add_argument("--questions", type=int, nargs="*", default=list(QUESTIONS), help="on one image")
    parser.add_argument("--steps", type=int, default=1, help="timed steps, the best counts")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, PNG or SVG")
    given = parser.parse_args()
    tokens, asked = [], []
    for side in given.sides:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            make_model(folder / "model", side=side)
            write_pairs(folder / "pairs", PAIRS, 1, side=side)
            tokens.append(_point((side // 14) ** 2, "dpo, checkpointing", folder, given))
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place) / "model", side=SIDE)
        for number in given.questions:
            folder = Path(place)
            write_questions(folder / f"questions-{number}", 1, number)
            (folder / "questions").unlink(missing_ok=True)
            (folder / "questions").symlink_to(folder / f"questions-{number}")
            asked.append(_point(number, "sft, 4 questions on one image", folder, given))
    found = {"image tokens, dpo": tokens, "questions on one image, sft": asked}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    for name, points in found.items():
        _print(name, points)
    if given.plot:
        _draw(found, given.plot)


def _point(at: int, work: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    print(f"{work}: {at}", file=sys.stderr)
    ways = take_turns(work, folder, 1, given.steps, given.threads, WAYS)
    return {"at": at, **{way: runs[0] for way, runs in ways.items()}}


def _print(name: str, points: list[dict[str, Any]]) -> None:
    head = ["", name, "ours s", "TRL s", "ratio", "ours MB", "TRL MB", "LM tokens: ours, TRL", ""]
    print(f"\n{' | '.join(head).strip()}\n|{'---|' * 7}")
    for point in points:
        ours, theirs = (point[way] for way in WAYS)
        memory = [f"{side['step_megabytes']:.0f}" for side in (ours, theirs)]
        tokens = f"{ours['lm_tokens']:,}, {theirs['lm_tokens']:,}"
        ratio = theirs["seconds"] / ours["seconds"]
        cells = [point["at"], f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{ratio:.2f}x", *memory, tokens]
        print("| " + " | ".join(map(str, cells)) + " |")


def _draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(9, 6), layout="constrained")
    for column, (name, points) in zip(axes.T, found.items(), strict=True):
        for axis, key, label in zip(column, ("seconds", "step_megabytes"), ("s a step", "MB a step"), strict=True):
            for way, title in zip(WAYS, ("vlmtrain", "TRL, GPU path"), strict=True):
                axis.plot([p["at"] for p in points], [p[way][key] for p in points], marker="o", label=title)
            axis.set(xlabel=name, ylabel=label, ylim=(0, None))
            axis.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
