"""One training step of vlmtrain against TRL's: ``python -m benchmarks.steps``.

A random LLaVA-like model with 576 image tokens (``benchmarks.llava_576``), float32, LoRA of rank 8 on all linear layers
of the language model, the same LoRA weights on every side, dropout 0. A step is forward and backward of one batch; DPO
asks the reference in the same step on every side. Each run is a process of its own, ways take turns, ratios are of
runs that follow each other, medians are shown; so are the difference of the loss, the largest difference of a LoRA
gradient (relative to the largest entry of its matrix), tokens through the language model, and peak memory.

- ``vlmtrain``: as the commands run it.
- ``compact``: TRL with its GPU code path forced on the CPU, which projects answer tokens only.
- ``stock``: TRL as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.counting import count
from benchmarks.llava_576 import SIDE, make_model, write_pairs, write_questions
from benchmarks.trainers import gpu_path, ours, same_weights, theirs

__all__ = ["KEPT", "SIDE", "WAYS", "WORKS", "main", "prepare", "table", "take_turns"]

WAYS = ("vlmtrain", "compact", "stock")
# Work -> (method, data, gradient checkpointing).
WORKS = {
    "dpo, checkpointing": ("dpo", "pairs", True),
    "dpo": ("dpo", "pairs", False),
    "dpo, 4 pairs on one image": ("dpo", "alike", True),
    "sft, checkpointing": ("sft", "rows", True),
    "sft": ("sft", "rows", False),
    "sft, 4 questions on one image": ("sft", "questions", True),
    "sft, checkpointing, features kept": ("sft", "rows", True),
    "sft, features kept": ("sft", "rows", False),
}
# vlmtrain's step is then one of a later epoch (cache_vision).
KEPT = ("sft, checkpointing, features kept", "sft, features kept")
PAIRS, ROWS = 2, 4


def main() -> None:
    """Make model and data, let the ways take turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument(
        "--steps", type=int, default=2, help="timed steps of a run, after one that is not; the best counts"
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of the images in pixels; 14 x 14 pixels are a token")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=list(WORKS), metavar="WORK")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", nargs=3, metavar=("WAY", "WORK", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, work, folder = given.work
        print(json.dumps(_work(way, work, Path(folder), given.steps, given.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), given.side)
        found = {work: take_turns(work, Path(folder), given.runs, given.steps, given.threads) for work in given.works}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    table(found)


def prepare(folder: Path, side: int) -> None:
    """The model and the rows of every work."""
    make_model(folder / "model", side=side)
    write_pairs(folder / "pairs", PAIRS, 1, side=side)
    write_pairs(folder / "alike", 1, 4, side=side)
    write_questions(folder / "rows", ROWS, 1, side=side)
    write_questions(folder / "questions", 1, 4, side=side)


def take_turns(
    work: str, folder: Path, runs: int, steps: int, threads: int, ways: tuple[str, ...] = WAYS
) -> dict[str, list[dict[str, Any]]]:
    """Figures of each way's runs, gradients compared with those of vlmtrain's run of the same turn."""
    import torch

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for run in range(runs):
        grads: dict[str, dict[str, torch.Tensor]] = {}
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.steps", "--work", way, work, str(folder)]
            command += ["--steps", str(steps), "--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way}, {work} failed:\n{done.stderr}")
            figures = json.loads(done.stdout.splitlines()[-1])
            grads[way] = torch.load(folder / "grads.pt")
            figures["gradient_difference"] = _apart(grads["vlmtrain"], grads[way])
            found[way].append(figures)
            print(f"{work}, {way}, run {run + 1}: {figures['seconds']:.2f} s", file=sys.stderr)
    return found


def _apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    if ours.keys() != theirs.keys():
        sys.exit(f"other weights are trained: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    return max(float((ours[k] - v).abs().max() / v.abs().max().clamp(min=1e-12)) for k, v in theirs.items())


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Print the figures of :func:`take_turns`, by work."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="a step: medians, and the ratio to vlmtrain's run of the same turn")
    for column in ("work", "way", "s", "ratio", "LM tokens", "tower images", "peak MB", "loss", "gradient"):
        table.add_column(column, justify="left" if column in ("work", "way") else "right")
    for work, ways in found.items():
        ours = ways["vlmtrain"]
        for way, runs in ways.items():
            ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, runs, strict=True))
            table.add_row(
                work if way == "vlmtrain" else "",
                way,
                f"{statistics.median(run['seconds'] for run in runs):.2f}",
                f"{ratio:.2f}x",
                f"{runs[0]['lm_tokens']:,}",
                str(runs[0]["tower_images"]),
                f"{statistics.median(run['peak_megabytes'] for run in runs):.0f}",
                f"{max(abs(a['loss'] - b['loss']) for a, b in zip(ours, runs, strict=True)):.0e}",
                f"{max(run['gradient_difference'] for run in runs):.0e}",
            )
    Console(width=120).print(table)


def _work(way: str, work: str, folder: Path, steps: int, threads: int) -> dict[str, Any]:
    import torch

    from vlmtrain.trl_seam import compact_lm_head

    torch.set_num_threads(threads)
    method, data, checkpointing = WORKS[work]
    if way == "vlmtrain":
        trainer, batch = _ours(method, folder, data, checkpointing, work in KEPT)
    else:
        trainer, batch = _theirs(method, folder, data, checkpointing)
    same_weights(trainer.model)
    trainer.model.train()
    if checkpointing:
        trainer.model.activation_checkpointing_enable(trainer.args.activation_checkpointing_kwargs)
    counts = count(trainer.model)
    before = _resident("VmRSS")
    seconds = []
    # As vlmtrain.training.run has it for a whole run.
    with {"vlmtrain": compact_lm_head, "compact": gpu_path, "stock": contextlib.nullcontext}[way]():
        for _ in range(steps + 1):
            trainer.model.zero_grad()
            counts.update(dict.fromkeys(counts, 0))
            began = time.perf_counter()
            loss = trainer.compute_loss(trainer.model, dict(batch))
            loss.backward()
            seconds.append(time.perf_counter() - began)
    grads = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    torch.save(grads, folder / "grads.pt")
    return {
        "seconds": min(seconds[1:]),
        "loss": loss.item(),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "step_megabytes": _resident("VmHWM") - before,
        **counts,
    }


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def _ours(method: str, folder: Path, data: str, checkpointing: bool, kept: bool) -> tuple[Any, dict[str, Any]]:
    options = {
        "batch_size": 8,
        "lora_r": 8,
        "lora_alpha": 16,
        "gradient_checkpointing": checkpointing,
        "cache_vision": "ram" if kept else "off",
        **({"reference": "live"} if method == "dpo" else {}),
    }
    with tempfile.TemporaryDirectory() as out:
        trainer = ours(method, folder / "model", folder / data, Path(out), options=options)
    if kept:
        trainer.with_features(trainer.data_collator(list(trainer.train_dataset)))
    return trainer, trainer.data_collator(list(trainer.train_dataset))


def _theirs(method: str, folder: Path, data: str, checkpointing: bool) -> tuple[Any, dict[str, Any]]:
    given = {"per_device_train_batch_size": 8, "use_cpu": True, "bf16": False, "gradient_checkpointing": checkpointing}
    lora = {"r": 8, "lora_alpha": 16}
    with tempfile.TemporaryDirectory() as out:
        trainer = theirs(method, folder / "model", folder / data, Path(out), "llava", arguments=given, lora=lora)
    return trainer, trainer.data_collator(list(trainer.train_dataset))


if __name__ == "__main__":
    main()
