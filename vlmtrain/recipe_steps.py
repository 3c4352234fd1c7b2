"""A recipe as commands, from raw data to a report: shown, or run one after the other.

Every step leaves files of its own under one folder::

    OUT/data         shards, or OUT/data/PART where they are split (OUT/shards holds them undivided)
    OUT/run          the adapter
    OUT/model        the merged model, where the recipe merges
    OUT/base OUT/tuned   evaluations, and OUT/compare.html
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, VlmError
from vlmtrain.config import resolve
from vlmtrain.recipe import Recipe

__all__ = ["Places", "Step", "StepFailed", "run_steps", "script", "steps"]


class StepFailed(VlmError, RuntimeError):
    """A step of a recipe ended with an error, which it has printed itself."""


@dataclass(frozen=True, slots=True)
class Places:
    """What the user has, and where the results go.

    Attributes:
        out: folder of all results.
        raw: raw data; none streams the source's own hub dataset.
        model: instead of the recipe's.
        convert: options of ``vlmdata convert`` instead of the recipe's.
        parts: instead of the recipe's; ``""`` trains on all rows.
        sets: ``key=value`` for the training.
        report: options of the ``vlmeval`` task instead of the recipe's.
    """

    out: Path
    raw: tuple[str, ...] = ()
    model: str | None = None
    convert: Mapping[str, Any] = field(default_factory=dict)
    parts: str | None = None
    sets: tuple[str, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One command.

    Attributes:
        command: program and arguments.
        done: a file that is there once the step is complete.
        resumable: the command knows ``--resume``.
    """

    command: tuple[str, ...]
    done: Path
    resumable: bool = False


def steps(recipe: Recipe, places: Places) -> list[Step]:
    """The commands of a recipe, in order.

    Raises:
        ConfigError: the recipe has no data, its report has none, or a training key cannot be.
    """
    if recipe.data is None:
        raise ConfigError(f"recipe {recipe.name} has no data block: use it as vlmtrain {recipe.method} --recipe")
    # Now, not after hours of conversion.
    resolve(recipe.method, {"model": places.model}, recipe=recipe.given, sets=places.sets)
    out, data = places.out, recipe.data
    parts = data.parts if places.parts is None else places.parts or None
    shards = out / "shards" if parts else out / "data"
    convert = ["vlmdata", "convert", data.source, *places.raw, *_flags({**data.options, **places.convert})]
    found = [Step((*convert, "--out", str(shards)), shards / "manifest.json", resumable=True)]
    train_on, look_at = shards, None
    if parts:
        split = ["vlmdata", "split", str(shards), "--out", str(out / "data"), "--parts", parts, *_flags(data.split)]
        found.append(Step(tuple(split), out / "data" / "split.json"))
        train_on = out / "data" / data.train
        look_at = out / "data" / data.evaluate if data.evaluate else None
    model = ["--model", places.model] if places.model else []
    train = ["vlmtrain", recipe.method, "--recipe", recipe.given, "--data", str(train_on)]
    train += ["--eval-data", str(look_at)] if look_at else []
    train += [*model, "--out", str(out / "run")]
    for item in places.sets:
        train += ["--set", item]
    found.append(Step(tuple(train), out / "run" / "vlmtrain.json", resumable=True))
    if recipe.merge is not None:
        merge = ["vlmtrain", "merge", str(out / "run"), *model, *_flags(recipe.merge), "--out", str(out / "model")]
        found.append(Step(tuple(merge), out / "model" / "config.json"))
    return found + _report(recipe, places, parts, model)


def _report(recipe: Recipe, places: Places, parts: str | None, model: list[str]) -> list[Step]:
    report, out = recipe.report, places.out
    if report is None:
        return []
    options = {**report.options, **places.report}
    if report.part is not None:
        options["data"] = out / "data" / report.part if parts else out / "data"
    if "data" not in options:
        raise ConfigError(f"recipe {recipe.name} is scored by {report.task}: give its data as --report data=FOLDER")
    base = places.model or recipe.values.get("model")
    asked = [("base", ["--model", str(base)])] if report.base else []
    asked.append(("tuned", [*model, "--adapter", str(out / "run")]))
    found = []
    for name, who in asked:
        command = ("vlmeval", report.task, *who, *_flags(options), "--out", str(out / name))
        found.append(Step(command, out / name / "report.json", resumable=True))
    if report.base:
        page = out / "compare.html"
        found.append(Step(("vlmeval", "compare", str(out / "base"), str(out / "tuned"), "--html", str(page)), page))
    return found


def script(found: Sequence[Step]) -> str:
    """The steps as shell commands, one a line."""
    return "\n".join(shlex.join(step.command) for step in found) + "\n"


def run_steps(found: Sequence[Step], out: Path, *, resume: bool = False, say: Any = print) -> None:
    """Run the steps, each as a process of its own, and stop at the first that fails.

    Args:
        found: of :func:`steps`.
        out: their folder.
        resume: leave out what is complete, go on with what was interrupted.
        say: told each command before it runs.

    Raises:
        ConfigError: there are results already.
        StepFailed: a step ended with an error.
    """
    if out.exists() and any(out.iterdir()) and not resume:
        raise ConfigError(f"{out} is not empty: --resume goes on with it, or choose another --out")
    for step in found:
        program, *arguments = step.command
        if resume and step.done.exists() and not step.resumable:
            continue
        again = ["--resume"] if resume and step.resumable and step.done.parent.exists() else []
        say(f"$ {shlex.join([program, *arguments, *again])}")
        ended = subprocess.run([sys.executable, "-m", program, *arguments, *again], env=dict(os.environ), check=False)
        if ended.returncode:
            raise StepFailed(f"{program} {arguments[0]} failed with exit status {ended.returncode}; then: --resume")


def _flags(options: Mapping[str, Any]) -> list[str]:
    """``{limit: 3000, overwrite: true}`` as ``--limit 3000 --overwrite``."""
    flags: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        flags.append(f"--{name.replace('_', '-')}")
        if value is not True:
            flags.append(str(value))
    return flags
