"""What is kept of a frozen tower, against computing it in every epoch: ``python -m benchmarks.cached``.

- A step of SFT in a later epoch, on features that are kept, against TRL's (``benchmarks.steps``).
- A classifier's head alone, five epochs without augmentation, as a whole run: from opening the data to the written
  weights. Against transformers' Trainer on the same model (ViT of 12 layers of 384, random), rows, order, batches and
  first weights of the head, with all else frozen. Each run is a process of its own, imports are not counted; ways take
  turns, ratios are of runs that follow each other.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import steps

__all__ = ["main"]

WAYS = ("vlmtrain", "transformers")
EPOCHS, BATCH, RATE = 5, 16, 1e-3
CLASSES = ("cat", "dog", "owl", "yak")


def main() -> None:
    """Make models and data, let the ways take turns, print two tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--pictures", type=int, default=128, help="that the head is trained on")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(_work(given.work[0], Path(given.work[1]), given.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        steps.prepare(place, steps.SIDE)
        found: dict[str, Any] = {
            work: steps.take_turns(work, place, given.runs, 2, given.threads) for work in steps.KEPT
        }
        steps.table(found)
        _prepare(place, given.pictures)
        heads = _take_turns(place, given.runs, given.threads)
    _table(heads)
    if given.json:
        given.json.write_text(json.dumps({**found, "head": heads}, indent=1) + "\n")


def _prepare(folder: Path, pictures: int) -> None:
    """The base, and pictures of noise in folders of classes."""
    import torch
    import transformers as tf
    from PIL import Image

    from vlmdata.convert import convert

    torch.manual_seed(0)
    config = tf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=2)
    tf.ViTForImageClassification(config).save_pretrained(folder / "vit")
    tf.ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / "vit")
    draws = random.Random(0)
    for number in range(pictures):
        place = folder / "raw" / CLASSES[number % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (256, 240), draws.randbytes(256 * 240 * 3)).save(place / f"{number}.jpg")
    convert("imagefolder", folder / "raw", folder / "pictures", engine="serial", progress=False)


def _take_turns(folder: Path, runs: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for run in range(runs):
        weights: dict[str, dict[str, Any]] = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.cached", "--work", way, str(folder), "--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            figures = json.loads(done.stdout.splitlines()[-1])
            weights[way] = figures.pop("head")
            found[way].append(figures)
            print(f"head, {way}, run {run + 1}: {figures['seconds']:.1f} s", file=sys.stderr)
        ours, theirs = weights.values()
        found["vlmtrain"][-1]["difference"] = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return found


def _table(found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"the head of a ViT, {EPOCHS} epochs, whole run: medians")
    for column in ("way", "s", "ratio", "pictures through the tower", "weights apart"):
        table.add_column(column, justify="left" if column == "way" else "right")
    ours = found["vlmtrain"]
    for way, runs in found.items():
        ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, runs, strict=True))
        apart = f"{max(run['difference'] for run in ours):.0e}" if way == "vlmtrain" else ""
        seconds = statistics.median(run["seconds"] for run in runs)
        table.add_row(way, f"{seconds:.1f}", f"{ratio:.2f}x", f"{runs[0]['pictures']:,}", apart)
    Console(width=100).print(table)


def _work(way: str, folder: Path, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    return (_ours if way == "vlmtrain" else _theirs)(folder)


def _counted(model: Any) -> list[int]:
    """Pictures of each call of the tower."""
    seen: list[int] = []
    model.vit.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    return seen


def _ours(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    from vlmtrain import classify
    from vlmtrain.job import Job
    from vlmtrain.training import run

    options = {
        "model": str(folder / "vit"),
        "head_only": True,
        "augment": "none",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "workers": 0,
    }
    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        job = classify.begin(data=[folder / "pictures"], out=Path(out) / "run", progress=False, options=options)
        assert isinstance(job, Job)
        seen = _counted(job.loaded.model)
        first = [value.clone() for value in job.loaded.model.classifier.state_dict().values()]
        trainer = classify.make_trainer(job)
        result = run(trainer, job)
        seconds = time.perf_counter() - began
        weights = load_file(result.out / "adapter_model.safetensors")
    orders = []
    for epoch in range(EPOCHS):
        trainer.sampler.set_epoch(epoch)
        orders.append([number % len(job.rows) for number in trainer.sampler])
    note = {"orders": orders, "first": [value.flatten().tolist() for value in first]}
    (folder / "order.json").write_text(json.dumps(note))
    head = [weights[f"base_model.model.classifier.{name}"].flatten().tolist() for name in ("weight", "bias")]
    return {"seconds": seconds, "pictures": sum(seen), "head": [*head[0], *head[1]]}


def _theirs(folder: Path) -> dict[str, Any]:
    import torch
    import transformers as tf
    from datasets import Image, List, load_dataset

    note = json.loads((folder / "order.json").read_text())

    class InOrder(torch.utils.data.Sampler[int]):
        epoch = 0

        def __len__(self) -> int:
            return len(note["orders"][0])

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(note["orders"][self.epoch - 1])

    class Trainer(tf.Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return InOrder()

    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        files = sorted(map(str, (folder / "pictures").glob("*.parquet")))
        rows = load_dataset("parquet", data_files=files, split="train", cache_dir=out).select_columns(
            ["images", "label"]
        )
        rows = rows.cast_column("images", List(Image()))
        processor = tf.AutoImageProcessor.from_pretrained(folder / "vit")
        # As vlmtrain shows pictures to a classifier: resized and cropped.
        processor.size, processor.crop_size = {"shortest_edge": 224}, {"height": 224, "width": 224}
        processor.do_center_crop = True
        model = tf.ViTForImageClassification.from_pretrained(
            folder / "vit", num_labels=len(CLASSES), ignore_mismatched_sizes=True
        )
        seen = _counted(model)
        model.requires_grad_(False)
        with torch.no_grad():
            for weight, first in zip(model.classifier.parameters(), note["first"], strict=True):
                weight.copy_(torch.tensor(first).view_as(weight)).requires_grad_(True)

        def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
            pictures = [row["images"][0].convert("RGB") for row in batch]
            pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": torch.tensor([row["label"] for row in batch])}

        args = tf.TrainingArguments(
            output_dir=out,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            optim="adamw_torch",
            use_cpu=True,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=args, train_dataset=rows, data_collator=collate).train()
        model.save_pretrained(Path(out) / "model")
        seconds = time.perf_counter() - began
    head = [value.flatten().tolist() for value in model.classifier.state_dict().values()]
    return {"seconds": seconds, "pictures": sum(seen), "head": [*head[0], *head[1]]}


if __name__ == "__main__":
    main()
