"""Training and evaluation on a GPU against TRL and transformers, at real shapes: ``python -m benchmarks.gpu``.

Models as large as published ones (``benchmarks.gpu_shapes``), of random numbers, bfloat16, LoRA of rank 16 on the
language model; nothing is downloaded. For one NVIDIA GPU of 40 GB or more; after ``make setup``::

    python -m benchmarks.gpu --json gpu.json
    python -m benchmarks.gpu --models llava --works dpo,ask --runs 1 --minutes 8     (a short one)
    python -m benchmarks.gpu --device cpu --tiny --runs 1                            (anywhere: does it run?)

- ``dpo``, ``sft``: a step of a real run of each trainer, gradient checkpointing on, as both have it on a GPU; ``-off``
  without. Learning rate 0, so the loss of every step can be compared. ``vlmtrain`` asks the reference in the step, as
  TRL does; ``vlmtrain-once`` before training, as its command does, and the time of that is part of its ratio.
- ``ask``: 14 yes/no questions on each picture. ``vlmeval`` reads first-token probabilities, ``vlmeval-words`` writes
  words; ``generate`` is transformers in batches of 8. Answers that differ are counted, with how close they were.

Every side of every work is a process of its own, sides take turns, medians of steps are shown and ratios of runs that
follow each other. What fails or does not fit into memory is shown as such, the others go on. The JSON file is written
after each process. Utilisation is what a step needs (``benchmarks.gpu_flops``) by what the GPU does in large products;
without their rate it is not measured, and the rest is.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import gpu_flops, gpu_work
from benchmarks.gpu_setting import SIDES, WORKS, Setting, shape_of
from benchmarks.gpu_shapes import SHAPES
from benchmarks.gpu_tables import show

__all__ = ["main"]

EVALUATION_TARGET = 6.0
MODELS = ["smolvlm", "qwen", "llava"]


def main() -> None:
    """Measure, print tables, write the figures; ends with an error where a process failed otherwise than by memory."""
    given = _arguments()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Nothing is to be fetched, and nothing is to wait for a network that is not there.
    os.environ["HF_HUB_OFFLINE"] = "1"
    _check(given)
    found: dict[str, Any] = {"about": _about(given), "models": {}, "works": []}
    with tempfile.TemporaryDirectory(dir=given.tmp, prefix="vlm-gpu-") as folder:
        runner = _Runner(Path(folder), given)
        rate = runner.do(_setting(given, "rate", given.models[0]))
        if "error" in rate:
            rate["rate_error"] = rate.pop("error")
        found["about"] |= rate
        _write(given, found)
        for model in given.models:
            _measure(model, runner, given, found)
    show(found)
    if faults := _faults(found):
        sys.exit(faults)


def _faults(found: dict[str, Any]) -> str:
    """What did not run; neither memory nor --minutes is a fault."""
    broken = [entry for entry in found["works"] if not entry.get("error", "out of").startswith("out of")]
    said = [f"{len(broken)} of {len(found['works'])} did not run, see above"] if broken else []
    why = found["about"].get("rate_error", "out of")
    return "; ".join(said if why.startswith("out of") else [*said, f"the rate of large products: {why}"])


def _write(given: argparse.Namespace, found: dict[str, Any]) -> None:
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shrink the shapes until a CPU does them in a moment")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="of weights; bfloat16, on a CPU float32")
    for name, default, valid in (("models", MODELS, SHAPES), ("works", list(WORKS), WORKS)):
        parser.add_argument(
            f"--{name}",
            type=functools.partial(_names, valid=list(valid)),
            default=default,
            metavar="NAME[,NAME ...]",
            help=f"of {', '.join(valid)}; else {','.join(default)}",
        )
    parser.add_argument("--runs", type=int, default=2, help="runs of each side, which take turns")
    parser.add_argument("--steps", type=int, help="timed steps of a run; 8, of tiny shapes 2")
    parser.add_argument("--warm", type=int, help="steps before them; 3, of tiny shapes 1")
    parser.add_argument("--pairs", type=int, help="of a DPO step; an SFT step has twice as many rows; 4, tiny 2")
    parser.add_argument("--pictures", type=int, help="to ask about; 8, of tiny shapes 2")
    parser.add_argument("--questions", type=int, default=14, help="about each picture")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of vlmtrain's side, as its own"
    )
    parser.add_argument("--minutes", type=float, help="begin nothing after so many")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a process is ended")
    parser.add_argument("--tmp", type=Path, help="folder for models, which need up to 14 GB; the system's otherwise")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args()
    given.dtype = given.dtype or ("bfloat16" if given.device == "cuda" else "float32")
    for name, tiny, usual in (("steps", 2, 8), ("warm", 1, 3), ("pairs", 2, 4), ("pictures", 2, 8)):
        if getattr(given, name) is None:
            setattr(given, name, tiny if given.tiny else usual)
    least = {"runs": 1, "steps": 1, "warm": 0, "pairs": 1, "pictures": 1, "questions": 1}
    for name, lowest in least.items():
        if getattr(given, name) < lowest:
            parser.error(f"--{name} is {getattr(given, name)}, expected at least {lowest}")
    return given


def _names(text: str, valid: list[str]) -> list[str]:
    found = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in found if name not in valid]:
        raise argparse.ArgumentTypeError(f"no {unknown[0]!r}; valid: {', '.join(valid)}")
    return found


def _check(given: argparse.Namespace) -> None:
    """End with one line where it cannot work, before any work."""
    if given.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("--device cuda: torch finds no GPU; give --device cpu --tiny to see whether it runs")
        if given.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
            sys.exit(f"--dtype bfloat16: {torch.cuda.get_device_name(0)} has none; give --dtype float32")
    place = given.tmp or Path(tempfile.gettempdir())
    if not place.is_dir():
        sys.exit(f"--tmp {place} is no folder: make it, or give another")
    if given.json and not given.json.resolve().parent.is_dir():
        sys.exit(f"--json {given.json}: there is no folder {given.json.resolve().parent}")
    largest = max(shape_of(model, given.tiny).parameters for model in given.models)
    needed = 1.1 * largest * (2 if given.dtype == "bfloat16" else 4)
    free = shutil.disk_usage(place).free
    if free < needed:
        sys.exit(f"{place} has {free / 1e9:.1f} GB free, a model needs {needed / 1e9:.1f}: give --tmp another folder")


def _about(given: argparse.Namespace) -> dict[str, Any]:
    # Tiny shapes have none.
    targets = {} if given.tiny else {f"{model}, dpo": SHAPES[model].target for model in given.models}
    settings = ("device", "dtype", "tiny", "runs", "steps", "warm", "pairs", "pictures", "questions", "set")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{name: getattr(given, name) for name in settings},
        "targets": targets and {**targets, "ask": EVALUATION_TARGET},
        "needed": gpu_flops.__doc__,
    }


def _setting(given: argparse.Namespace, work: str, model: str, side: str = "", folder: Path | None = None) -> Setting:
    copied = ("tiny", "device", "dtype", "pairs", "warm", "steps", "pictures", "questions")
    values = {name: getattr(given, name) for name in copied}
    return Setting(work=work, model=model, side=side, folder=str(folder or ""), sets=tuple(given.set), **values)


def _measure(model: str, runner: _Runner, given: argparse.Namespace, found: dict[str, Any]) -> None:
    """All works of a model; its weights are on the disk meanwhile."""
    with tempfile.TemporaryDirectory(dir=runner.folder) as place:
        folder = Path(place)
        made = runner.do(_setting(given, "make", model, folder=folder))
        shape = shape_of(model, given.tiny)
        found["models"][model] = {"source": shape.source, "image_tokens": shape.image_tokens, **made}
        for work, run, side in _turns(given):
            entry: dict[str, Any] = {"model": model, "work": work, "run": run, "side": side}
            if "error" in made:
                entry["error"] = f"{made['error']} (making the model)"
            else:
                entry |= runner.do(_setting(given, work, model, side, folder))
            found["works"].append(entry)
            _write(given, found)


def _turns(given: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for work in given.works:
        for run in range(given.runs):
            for side in SIDES[work]:
                yield work, run, side


class _Runner:
    """Processes one after the other.

    Attributes:
        folder: for what they leave.
    """

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self._timeout = folder, given.timeout
        self._ends = time.monotonic() + 60 * given.minutes if given.minutes else None
        # A process that has looked for a GPU must not be forked.
        self._context: Any = multiprocessing.get_context("spawn" if given.device == "cuda" else "forkserver")
        if given.device == "cpu":
            self._context.set_forkserver_preload(gpu_work.PRELOAD)

    def do(self, setting: Setting) -> dict[str, Any]:
        """What a process finds, or ``{"error": ...}``."""
        name = " ".join(filter(None, (setting.model, setting.work, setting.side)))
        if self._ends is not None and time.monotonic() > self._ends:
            return {"error": "out of time"}
        began = time.monotonic()
        result, log = self.folder / "result.json", self.folder / "log.txt"
        for file in (result, log):
            file.unlink(missing_ok=True)
        process = self._context.Process(target=gpu_work.work, args=(setting, result, log))
        process.start()
        process.join(self._timeout)
        found = self._found(process, result)
        seconds = time.monotonic() - began
        print(f"{name}: {found.get('error', f'{seconds:.0f} s')}", file=sys.stderr)
        if "error" in found and log.is_file():
            print(*log.read_text(errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
        return {"process_seconds": seconds, **found}

    def _found(self, process: Any, result: Path) -> dict[str, Any]:
        if process.is_alive():
            process.kill()
            process.join()
            return {"error": f"not done after {self._timeout:.0f} s"}
        if not result.is_file():
            return {"error": f"the process ended by itself, exit code {process.exitcode}"}
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


if __name__ == "__main__":
    main()
