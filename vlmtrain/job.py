"""A run before its trainer exists: configuration, folder and data opened and checked, then a job that can start."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlmdata.atomic import sha256_file, write_json
from vlmdata.errors import ConfigError
from vlmdata.licences import non_commercial
from vlmtrain import config as configs
from vlmtrain import distributed
from vlmtrain.adapters import adapter_file, adapter_folder, recorded_settings
from vlmtrain.auto_batch import settled
from vlmtrain.bad_rows import Ledger
from vlmtrain.combinations import checked
from vlmtrain.config import Config
from vlmtrain.data import Opened, open_data
from vlmtrain.hub import check_access
from vlmtrain.mixing import check_weights
from vlmtrain.model import Loaded
from vlmtrain.optimizers import available
from vlmtrain.progress import Reporter
from vlmtrain.runs import RunFolder, RunResult
from vlmtrain.streaming import Fitting
from vlmtrain.watching.checks import check as check_watching

__all__ = ["Job", "Opening", "open_run", "start"]

KINDS = {"sft": "messages", "dpo": "preference", "kto": "preference", "classify": "messages"}


@dataclass(slots=True)
class Job:
    """Everything a trainer needs.

    Attributes:
        rows: training rows with their lengths; ``eval_rows`` the held-out ones.
        checkpoint: to go on from.
        identity: what the run is, for ``--resume`` and ``vlmtrain.json``.
        counts: rows read, kept, shrunk, dropped.
        lora: peft's configuration of a new adapter.
        initial: its first weights, where what was learned is the difference to them.
        exact: weights of an adapter that is trained further, by name, where TRL rounds them.
        sizes: rows of each training dataset as opened; the column ``row`` counts through them.
        fitting: the length policy of rows that are streamed.
        ledger: of rows that turn out to be unreadable.
        processes: how many share each optimizer step.
    """

    config: Config
    folder: RunFolder
    loaded: Loaded
    reporter: Reporter
    rows: Any
    eval_rows: Any
    checkpoint: Path | None
    identity: dict[str, Any]
    counts: dict[str, Any]
    lora: Any = None
    initial: Any = None
    exact: dict[str, Any] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    fitting: Fitting | None = None
    ledger: Ledger | None = None
    processes: int = 1
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda``."""
        return str(self.loaded.model.device.type)


@dataclass(slots=True)
class Opening:
    """What is known before the model is loaded.

    Attributes:
        kind: of the data, ``messages`` or ``preference``.
        recorded: the configuration as the run folder keeps it.
        data: the datasets to train on; ``eval_data`` those to evaluate on, where they are given.
        asked_batch: rows of a forward and forwards of a step that the user asked for, where memory made them others.
    """

    config: Config
    folder: RunFolder
    reporter: Reporter
    kind: str
    recorded: dict[str, Any]
    data: Opened
    eval_data: Opened | None
    asked_batch: tuple[int, int] | None = None


def open_run(
    method: str,
    *,
    data: Sequence[str | Path],
    out: str | Path,
    eval_data: Sequence[str | Path] = (),
    recipe: str | None = None,
    sets: Iterable[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    batch: tuple[int, int] | None = None,
    options: Mapping[str, Any],
) -> Opening | RunResult:
    """Check everything that can be checked without a model; a finished run that is resumed is given back.

    Args:
        method: ``sft``, ``dpo``, ``kto`` or ``classify``.
        data: shards folders.
        out: the run folder.
        eval_data: shards folders to evaluate on.
        recipe: packaged recipe or YAML file to start from.
        sets: ``key=value`` strings.
        resume: go on with a run that was killed.
        overwrite: replace a run that is there.
        progress: show what goes on.
        options: configuration keys.
        batch: rows of a forward and forwards of a step, in place of the configuration's (``vlmtrain.auto_batch``).

    Raises:
        VlmError: anything that cannot work.
    """
    config = configs.resolve(method, options, recipe=recipe, sets=sets)
    if config.base.adapter and Path(config.base.adapter).resolve() == Path(out).resolve():
        raise ConfigError(f"--out {out} is the adapter that is to be trained further: choose another folder")
    if config.training.eval_fraction and eval_data:
        raise ConfigError("--eval-data and --eval-fraction exclude each other")
    config = checked(config)
    distributed.begin()
    folder = distributed.first(lambda: RunFolder(out, overwrite=overwrite, resume=resume))
    config, instead = available(config)
    config, asked_batch = settled(config, batch, Path(out) if resume else None)
    recorded = _recorded(config)
    check_watching(config, bool(eval_data or config.training.eval_fraction))
    if config.watching.push_to_hub:
        check_access(config.watching.push_to_hub)
    labelled_answers = config.unpaired is not None and config.unpaired.label_by
    kind = "messages" if labelled_answers else KINDS[method]
    labelled = method == "classify"
    opened = open_data(data, kind, labelled=labelled, meta=config.reads_meta, streaming=config.rows.streaming)
    check_weights(config.rows.data_weights, [entry["name"] for entry in opened.origin])
    opened_eval = open_data(eval_data, kind, labelled=labelled, meta=config.reads_meta) if eval_data else None
    origins = {"data": opened.origin, "eval_data": opened_eval.origin if opened_eval else []}
    done = distributed.first(lambda: folder.finished(recorded, origins))
    if done:
        return done
    reporter = Reporter(folder.log, show=progress and distributed.is_first(), write=distributed.is_first())
    if instead:
        reporter.say(instead)
    for entry in opened.origin:
        if non_commercial(entry["licence"]):
            reporter.say(f"{entry['name']}: licence {entry['licence']}, NOT for commercial use")
    return Opening(config, folder, reporter, kind, recorded, opened, opened_eval, asked_batch)


def start(
    opening: Opening,
    loaded: Loaded,
    rows: Any,
    eval_rows: Any,
    counts: dict[str, Any],
    *,
    lora: Any = None,
    dropped: Sequence[Mapping[str, Any]] = (),
    fitting: Fitting | None = None,
) -> Job:
    """Claim the run folder and find the checkpoint to go on from.

    Args:
        opening: what was opened.
        loaded: the model and its processor.
        rows: to train on.
        eval_rows: to evaluate on, or None.
        counts: rows read, kept, shrunk, dropped.
        lora: peft's configuration of a new adapter.
        dropped: id, reason and detail of each row that is left out.
        fitting: the length policy of rows that are streamed.

    Raises:
        ConfigError: ``--resume`` with something else than the run was started with.
    """
    folder = opening.folder
    identity: dict[str, Any] = {
        "config": opening.recorded,
        "base": loaded.base,
        "base_hash": loaded.base_hash,
        "adapter": _adapter_identity(opening.config.base.adapter),
        "data": opening.data.origin,
        "eval_data": opening.eval_data.origin if opening.eval_data else [],
    }
    if opening.asked_batch:
        identity["asked_batch"] = list(opening.asked_batch)
    checkpoint, threads = distributed.first(lambda: _claim(opening, identity, dropped))
    # Sums come out bit by bit the same with the same number of threads only.
    torch.set_num_threads(threads)
    job = Job(opening.config, folder, loaded, opening.reporter, rows, eval_rows, checkpoint, identity, counts, lora)
    job.sizes, job.fitting, job.processes = opening.data.sizes, fitting, distributed.world()
    fail = opening.config.rows.on_bad_row == "fail"
    job.ledger = Ledger(folder.path / "bad_rows.jsonl", opening.reporter.say, fail=fail)
    _announce(job)
    return job


def _claim(
    opening: Opening, identity: Mapping[str, Any], dropped: Sequence[Mapping[str, Any]]
) -> tuple[Path | None, int]:
    """Checkpoint to go on from, and the number of threads the run was started with."""
    folder = opening.folder
    checkpoint, faults = folder.start(identity, torch.get_num_threads(), distributed.world())
    for fault in faults:
        opening.reporter.say(fault)
    if dropped:
        write_json(folder.path / "dropped.json", list(dropped))
    return checkpoint, folder.threads()


def _recorded(config: Config) -> dict[str, Any]:
    """The configuration as a run folder keeps it; an adapter that is trained further brings its own LoRA settings."""
    flat = config.to_json()
    if config.base.adapter is None:
        return flat
    return {**flat, **recorded_settings(config.base.adapter)}


def _adapter_identity(adapter: str | None) -> dict[str, str] | None:
    if adapter is None:
        return None
    name = Path(adapter).resolve().name if Path(adapter).is_dir() else adapter
    return {"name": name, "sha256": sha256_file(adapter_file(adapter_folder(adapter)))}


def _announce(job: Job) -> None:
    say, counts = job.reporter.say, job.counts
    say(f"model  {job.loaded.base} ({job.loaded.family.name}, {job.device}, {str(job.loaded.model.dtype)[6:]})")
    more = f", {len(job.eval_rows):,} for evaluation" if job.eval_rows is not None else ""
    tokens = f"; {counts['tokens']:,} tokens, {counts['image_tokens']:,} of images" if "tokens" in counts else ""
    say(f"rows   {len(job.rows):,}{more}{tokens}")
    if counts.get("shrunk"):
        say(f"       {counts['shrunk']:,} rows have their images made smaller to fit")
    for reason, number in counts["dropped"].items():
        say(f"       {number:,} rows dropped: {reason} (dropped.json)")
    if job.checkpoint:
        say(f"resume {job.checkpoint.name}")
