"""What ``vlmtrain plan`` foretells against what a run takes: ``python -m benchmarks.plan_accuracy``.

Random models of a hundred million parameters or less are trained for two epochs on the sample world, with our own
commands' trainers, and every allocation of torch's CPU allocator is recorded by torch's profiler. The largest sum of
live bytes, with the weights that were there before, is the measured peak; growth of the process's resident memory is
shown beside it. Each setting is a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FAMILIES = ("llava", "qwen2_vl")
METHODS = ("sft", "dpo")
TUNERS = ("lora", "full")


def main() -> None:
    """Prepare models and data, run every setting, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="architectures")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="what is trained for")
    parser.add_argument("--rows", type=int, default=4, help="rows of each dataset")
    parser.add_argument("--batch", type=int, default=2, help="rows (dpo: half as many pairs) of a forward")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", metavar="SETTING", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps(measure(**json.loads(given.work))))
        return
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(Path(folder), given.rows)
        for family in given.families:
            model = make_model(family, Path(folder) / family)
            for method, tuner, checkpointing in itertools.product(given.methods, TUNERS, (False, True)):
                batch = given.batch if method == "sft" else max(1, given.batch // 2)
                options = {"tuner": tuner, "gradient_checkpointing": checkpointing, "batch_size": batch}
                setting = {"method": method, "data": str(data[method]), "model": str(model), "options": options}
                found = in_process(setting)
                figures.append({"family": family, "method": method, **options, **found})
                print(_line(figures[-1]), flush=True)
    errors = [abs(entry["planned"] / entry["measured"] - 1) for entry in figures]
    print(f"largest error {max(errors):.1%}, mean {sum(errors) / len(errors):.1%}, of {len(errors)} settings")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def prepare_data(folder: Path, rows: int) -> dict[str, Path]:
    """The sample world as shards for each method."""
    from vlmdata.convert import convert
    from vlmdata.sample.write import write_sample

    raw = write_sample(folder / "raw", rows=rows, test_scenes=1).out
    convert("the_cauldron", [raw / "the_cauldron"], folder / "sft", config="shapes", progress=False)
    convert("rlaif_v", [raw / "rlaif_v"], folder / "dpo", progress=False)
    return {"sft": folder / "sft", "dpo": folder / "dpo"}


def make_model(family: str, out: Path, width: int = 640, layers: int = 8) -> Path:
    """A random model folder: the packaged shape of that family, made smaller."""
    import torch
    import transformers

    from vlmtrain.planning.shapes import find_shape

    shape = find_shape({"llava": "llava-1.5-7b", "qwen2_vl": "qwen2-vl-2b"}[family])
    text = shape.config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 2 * width, layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_attention_heads, text.num_key_value_heads, text.vocab_size = width // 64, width // 128, 8192
    text.tie_word_embeddings = shape.config.tie_word_embeddings = False
    vision = shape.config.vision_config
    if family == "llava":
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 512, 2048, min(6, layers)
        vision.num_attention_heads = 8
    else:
        vision.embed_dim, vision.depth, vision.num_heads, vision.hidden_size = 512, min(6, layers), 8, width
        text.head_dim = 64
        text.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
        shape.processor.image_processor.size = {"shortest_edge": 384 * 28 * 28, "longest_edge": 576 * 28 * 28}
    torch.manual_seed(0)
    model = getattr(transformers, shape.family.auto_class).from_config(shape.config, dtype=torch.float32)
    model.save_pretrained(out)
    shape.processor.save_pretrained(out)
    return out


def measure(method: str, data: str, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Foretold and measured bytes of one setting.

    Returns:
        ``planned`` with its ``items``, ``measured``, ``grown`` (resident memory beyond that before training).
    """
    import importlib

    import torch

    from vlmtrain.plan import plan
    from vlmtrain.training import begin
    from vlmtrain.trl_seam import compact_lm_head

    foretold = plan(method, model=model, data=[data], device="cpu", advice=False, **options)
    with tempfile.TemporaryDirectory() as out:
        job = begin(
            method,
            data=[data],
            out=Path(out) / "run",
            progress=False,
            options={"model": model, "epochs": 2, "workers": 0, **options},
        )
        trainer = importlib.import_module(f"vlmtrain.{method}").make_trainer(job)
        before = _resident("VmRSS")
        held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(trainer)}.values())
        activities = [torch.profiler.ProfilerActivity.CPU]
        head = compact_lm_head(job.config.training.compact_head)
        with head, torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            trainer.train()
        grown = _resident("VmHWM") - before
    return {
        "planned": foretold.memory.peak,
        "items": foretold.memory.items,
        "measured": held + _peak(profile),
        "grown": held + grown,
        "base": foretold.memory.base,
    }


def _tensors(trainer: Any) -> list[Any]:
    return [*trainer.model.parameters(), *trainer.model.buffers()]


def _peak(profile: Any) -> int:
    """Largest sum of bytes allocated and not freed since the profile began."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def _resident(field: str) -> int:
    """``VmRSS`` is what is resident now, ``VmHWM`` the most so far, in bytes; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field + ":"))


def in_process(setting: dict[str, Any]) -> dict[str, Any]:
    """:func:`measure` in a process of its own; a second profile in the same one misses what it allocates."""
    command = [sys.executable, "-m", "benchmarks.plan_accuracy", "--work", json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{setting} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(entry: dict[str, Any]) -> str:
    planned, measured, grown = (entry[key] / 1e9 for key in ("planned", "measured", "grown"))
    name = f"{entry['family']:9} {entry['method']} {entry['tuner']:4} "
    name += "checkpointing " if entry["gradient_checkpointing"] else "plain         "
    error = f"{planned / measured - 1:+.1%}"
    return f"{name} planned {planned:5.2f} GB, measured {measured:5.2f} ({error}), process {grown:5.2f}"


if __name__ == "__main__":
    main()
