"""What is kept of a classifier's frozen layers, against computing it in every epoch: ``python -m benchmarks.cached``.

Five epochs without augmentation, as a whole run: from opening the data to the written weights. Once the head alone is
trained, once that and LoRA on the last two blocks. Against transformers' Trainer, with peft, on the same model (ViT of
12 layers of 384, random), rows, order, batches and first weights, with all else frozen. Each run is a process of its
own, imports are not counted; ways take turns, ratios are of processor time, of runs that follow each other. What SFT
keeps of a vision tower is in ``benchmarks.steps``.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["main"]

WAYS = ("vlmtrain", "transformers")
WORKS = {"head": "the head of a ViT", "blocks": "the last 2 blocks of a ViT"}
EPOCHS, BATCH, RATE = 5, 16, 1e-3
RANK, BLOCKS, LAYERS = 16, 2, 12
CLASSES = ("cat", "dog", "owl", "yak")


def main() -> None:
    """Make models and data, let the ways take turns, print the tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--pictures", type=int, default=128, help="that the classifier is trained on")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--only", choices=tuple(WORKS), help="one of the comparisons")
    parser.add_argument("--work", nargs=3, metavar=("WORK", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work, way, place = given.work
        print(json.dumps(_work(work, way, Path(place), given.threads)))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _prepare(place, given.pictures)
        for work in WORKS:
            if given.only in (None, work):
                found[work] = _take_turns(work, place, given.runs, given.threads)
                _table(work, found[work])
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


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


def _take_turns(work: str, folder: Path, runs: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    import torch

    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for run in range(runs):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.cached", "--work", work, way, str(folder)]
            done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            figures = json.loads(done.stdout.splitlines()[-1])
            found[way].append(figures)
            print(f"{work}, {way}, run {run + 1}: {figures['seconds']:.1f} s", file=sys.stderr)
        ours, theirs = (torch.load(folder / f"{way}.pt") for way in WAYS)
        apart = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
        found["vlmtrain"][-1]["difference"] = apart
    return found


def _table(work: str, found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{WORKS[work]}, {EPOCHS} epochs, whole run: medians")
    for column in ("way", "s", "s of processor", "ratio", "pictures through block 1", "weights apart"):
        table.add_column(column, justify="left" if column == "way" else "right")
    ours = found["vlmtrain"]
    for way, runs in found.items():
        ratio = statistics.median(b["processor"] / a["processor"] for a, b in zip(ours, runs, strict=True))
        apart = f"{max(run['difference'] for run in ours):.0e}" if way == "vlmtrain" else ""
        times = [f"{statistics.median(run[key] for run in runs):.1f}" for key in ("seconds", "processor")]
        table.add_row(way, *times, f"{ratio:.2f}x", f"{runs[0]['pictures']:,}", apart)
    Console(width=100).print(table)


def _work(work: str, way: str, folder: Path, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    return (_ours if way == "vlmtrain" else _theirs)(work, folder)


class _Clock:
    """Seconds since it was made, and those the process computed in them."""

    def __init__(self) -> None:
        self.began = self._now()

    def figures(self) -> dict[str, float]:
        seconds, processor = (now - then for now, then in zip(self._now(), self.began, strict=True))
        return {"seconds": seconds, "processor": processor}

    def _now(self) -> tuple[float, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime


def _counted(model: Any) -> list[int]:
    """Pictures of each call of the first block."""
    seen: list[int] = []
    model.vit.layers[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return seen


def _trained(model: Any) -> list[Any]:
    """The weights that learn, in the order of the model."""
    return [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]


def _ours(work: str, folder: Path) -> dict[str, Any]:
    import torch

    from vlmtrain import classify
    from vlmtrain.job import Job
    from vlmtrain.training import run

    what = {"head_only": True} if work == "head" else {"lora_last_layers": BLOCKS, "lora_r": RANK, "lora_alpha": RANK}
    options = {
        "model": str(folder / "vit"),
        "augment": "none",
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "workers": 0,
        **what,
    }
    with tempfile.TemporaryDirectory() as out:
        clock = _Clock()
        job = classify.begin(data=[folder / "pictures"], out=Path(out) / "run", progress=False, options=options)
        assert isinstance(job, Job)
        seen = _counted(job.loaded.model)
        trainer = classify.make_trainer(job)
        first = _trained(trainer.model)
        run(trainer, job)
        figures = clock.figures()
    orders = []
    for epoch in range(EPOCHS):
        trainer.sampler.set_epoch(epoch)
        orders.append([number % len(job.rows) for number in trainer.sampler])
    (folder / "order.json").write_text(json.dumps(orders))
    torch.save(first, folder / "first.pt")
    torch.save(_trained(trainer.model), folder / "vlmtrain.pt")
    return {**figures, "pictures": sum(seen)}


def _prepared(work: str, model: Any, first: list[Any]) -> Any:
    """The model with what is to be trained, at the first weights of the other way."""
    import torch
    from peft import LoraConfig, get_peft_model

    model.requires_grad_(False)
    if work == "head":
        model.classifier.requires_grad_(True)
    else:
        config = LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
            layers_to_transform=list(range(LAYERS - BLOCKS, LAYERS)),
            modules_to_save=["classifier"],
        )
        model = get_peft_model(model, config)
    free = [weight for weight in model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight, value in zip(free, first, strict=True):
            weight.copy_(value)
    return model


def _theirs(work: str, folder: Path) -> dict[str, Any]:
    import torch
    import transformers as tf
    from datasets import Image, List, load_dataset

    orders, first = json.loads((folder / "order.json").read_text()), torch.load(folder / "first.pt")

    class InOrder(torch.utils.data.Sampler[int]):
        epoch = 0

        def __len__(self) -> int:
            return len(orders[0])

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(orders[self.epoch - 1])

    class Trainer(tf.Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return InOrder()

    with tempfile.TemporaryDirectory() as out:
        clock = _Clock()
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
        model = _prepared(work, model, first)

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
            label_names=["labels"],
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        Trainer(model=model, args=args, train_dataset=rows, data_collator=collate).train()
        model.save_pretrained(Path(out) / "model")
        figures = clock.figures()
    torch.save(_trained(model), folder / "transformers.pt")
    return {**figures, "pictures": sum(seen)}


if __name__ == "__main__":
    main()
