"""Fine-tuning with vlmtrain against plain TRL: ``python -m benchmarks.train``.

Same model (``vlmtrain:tiny``), rows, order, batches and LoRA layers, learning rate 0 so that every step's loss can be
compared. Each way is a process of its own; ways take turns, medians are shown.

- ``vlmtrain``: as the commands run it.
- ``trl``: SFTTrainer (``assistant_only_loss``) and DPOTrainer as published, on the same Parquet.
- ``trl-compact``: the same with TRL's GPU code path forced on the CPU, which projects answer tokens only.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.counting import count
from benchmarks.trainers import NOTHING_KNOWN

WAYS = ("vlmtrain", "trl", "trl-compact")
METHODS = ("sft", "dpo")
BATCH = 8
LORA_R = 16


def main() -> None:
    """Prepare data, let the ways take turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=160, help="rows of each dataset; one epoch is trained")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", nargs=4, metavar=("WAY", "METHOD", "DATA", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, method, data, out = given.work
        print(json.dumps(_work(way, method, Path(data), Path(out))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = _prepare(Path(folder), given.rows)
        figures = {method: _take_turns(method, data[method], Path(folder), given.runs) for method in METHODS}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    _table(figures)


def _prepare(folder: Path, rows: int) -> dict[str, Path]:
    from vlmdata.convert import convert
    from vlmdata.sample.write import write_sample

    raw = write_sample(folder / "raw", rows=rows, test_scenes=1).out
    convert("the_cauldron", [raw / "the_cauldron"], folder / "sft", config="shapes", progress=False)
    convert("rlaif_v", [raw / "rlaif_v"], folder / "dpo", progress=False)
    return {"sft": folder / "sft", "dpo": folder / "dpo"}


def _take_turns(method: str, data: Path, folder: Path, runs: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for run in range(runs):
        for way in WAYS:
            out = folder / f"{method}-{way}-{run}"
            command = [sys.executable, "-m", "benchmarks.train", "--work", way, method, str(data), str(out)]
            started = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} {method} failed:\n{done.stderr}")
            found[way].append(
                {"process_seconds": time.monotonic() - started, **json.loads(done.stdout.splitlines()[-1])}
            )
            print(f"{method} {way} run {run + 1}: {found[way][-1]['work_seconds']:.1f} s", file=sys.stderr)
    return found


def _table(figures: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    for method, ways in figures.items():
        table = Table(title=f"{method}: medians of {len(ways['vlmtrain'])} runs")
        for column in ("way", "work s", "ratio", "process s", "peak MB", "tower images", "LM tokens", "loss diff"):
            table.add_column(column, justify="left" if column == "way" else "right", no_wrap=column == "way")
        ours = ways["vlmtrain"]
        for way, runs in ways.items():
            work = _median(runs, "work_seconds")
            differ = max(abs(a - b) for a, b in zip(runs[0]["losses"], ours[0]["losses"], strict=True))
            table.add_row(
                way,
                f"{work:.1f}",
                f"{work / _median(ours, 'work_seconds'):.2f}x",
                f"{_median(runs, 'process_seconds'):.1f}",
                f"{_median(runs, 'peak_megabytes'):.0f}",
                f"{runs[0]['tower_images']:,}",
                f"{runs[0]['lm_tokens']:,}",
                f"{differ:.1e}",
            )
        Console().print(table)


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _work(way: str, method: str, data: Path, out: Path) -> dict[str, Any]:
    """From opening the data and loading the model to the trained adapter; importing the libraries is not counted."""
    import vlmtrain.dpo
    import vlmtrain.sft  # noqa: F401

    started = time.monotonic()
    make, model = (_ours if way == "vlmtrain" else _theirs)(method, data, out, way)
    counts = count(model)
    losses = [entry["loss"] for entry in make().state.log_history if "loss" in entry]
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"work_seconds": seconds, "peak_megabytes": peak, "losses": losses, **counts}


def _ours(method: str, data: Path, out: Path, way: str) -> tuple[Callable[[], Any], Any]:
    from torch.utils.data import SequentialSampler

    from vlmtrain import dpo, sft
    from vlmtrain.training import begin, run

    options = {"model": "vlmtrain:tiny", "batch_size": BATCH, "learning_rate": 0.0, "lora_r": LORA_R}
    options |= NOTHING_KNOWN[method]
    job = begin(
        method, data=[data], out=out, progress=False, sets=["logging_steps=1", "save_steps=100000"], options=options
    )

    class InOrder(SequentialSampler):
        def set_epoch(self, epoch: int) -> None:
            """The same order in every epoch."""

    def make() -> Any:
        trainer = (sft if method == "sft" else dpo).make_trainer(job)
        trainer.sampler = InOrder(job.rows)
        run(trainer, job)
        return trainer

    return make, job.loaded.model


def _theirs(method: str, data: Path, out: Path, way: str) -> tuple[Callable[[], Any], Any]:
    import trl.trainer.utils
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from vlmtrain.family import load
    from vlmtrain.model import locate

    if way == "trl-compact":
        trl.trainer.utils._use_triton = lambda device: True
    folder = locate("vlmtrain:tiny")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    rows = load_dataset("parquet", data_files=[str(path) for path in sorted(data.glob("*.parquet"))], split="train")
    arguments: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.0,
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "max_length": None,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }
    targets = load("llava").target_regex(("language",), ("attention", "mlp"))
    lora = LoraConfig(r=LORA_R, lora_alpha=32, target_modules=targets)
    common = {"model": model, "train_dataset": rows, "processing_class": processor, "peft_config": lora}

    def make() -> Any:
        if method == "sft":
            trainer: Any = SFTTrainer(args=SFTConfig(**arguments, assistant_only_loss=True), **common)
        else:
            trainer = DPOTrainer(args=DPOConfig(**arguments), **common)
        trainer.train()
        return trainer

    return make, model


if __name__ == "__main__":
    main()
