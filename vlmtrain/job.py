"""A run before its trainer exists: configuration, folder and data opened and checked, then a job that can start."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlmdata.atomic import sha256_file, write_json
from vlmdata.errors import ConfigError, DependencyError
from vlmdata.licences import non_commercial
from vlmtrain import config as configs
from vlmtrain.adapters import adapter_folder, read_run
from vlmtrain.config import Config
from vlmtrain.data import Opened, open_data
from vlmtrain.model import Loaded
from vlmtrain.progress import Reporter
from vlmtrain.runs import RunFolder, RunResult

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
    """

    config: Config
    folder: RunFolder
    reporter: Reporter
    kind: str
    recorded: dict[str, Any]
    data: Opened
    eval_data: Opened | None


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
    options: Mapping[str, Any],
) -> Opening | RunResult:
    """Check everything that can be checked without a model; a finished run that is resumed is given back.

    Raises:
        VlmError: anything that cannot work.
    """
    config = configs.resolve(method, options, recipe=recipe, sets=sets)
    if config.base.adapter and Path(config.base.adapter).resolve() == Path(out).resolve():
        raise ConfigError(f"--out {out} is the adapter that is to be trained further: choose another folder")
    if config.training.eval_fraction and eval_data:
        raise ConfigError("--eval-data and --eval-fraction exclude each other")
    folder = RunFolder(out, overwrite=overwrite, resume=resume)
    recorded = _recorded(config)
    done = folder.finished(recorded)
    if done:
        return done
    _check_optimizer(config)
    kind = KINDS[method]
    opened = open_data(data, kind)
    opened_eval = open_data(eval_data, kind) if eval_data else None
    reporter = Reporter(folder.log, show=progress)
    for entry in opened.origin:
        if non_commercial(entry["licence"]):
            reporter.say(f"{entry['name']}: licence {entry['licence']}, NOT for commercial use")
    return Opening(config, folder, reporter, kind, recorded, opened, opened_eval)


def start(
    opening: Opening,
    loaded: Loaded,
    rows: Any,
    eval_rows: Any,
    counts: dict[str, Any],
    *,
    lora: Any = None,
    dropped: Sequence[Mapping[str, Any]] = (),
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

    Raises:
        ConfigError: ``--resume`` with something else than the run was started with.
    """
    folder = opening.folder
    identity = {
        "config": opening.recorded,
        "base": loaded.base,
        "base_hash": loaded.base_hash,
        "adapter": _adapter_identity(opening.config.base.adapter),
        "data": opening.data.origin,
        "eval_data": opening.eval_data.origin if opening.eval_data else [],
    }
    checkpoint = folder.start(identity, torch.get_num_threads())
    # Sums come out bit by bit the same with the same number of threads only.
    torch.set_num_threads(folder.threads())
    if dropped:
        write_json(folder.path / "dropped.json", list(dropped))
    job = Job(opening.config, folder, loaded, opening.reporter, rows, eval_rows, checkpoint, identity, counts, lora)
    _announce(job)
    return job


def _check_optimizer(config: Config) -> None:
    if config.training.optimizer == "adamw_8bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise DependencyError("bitsandbytes", "quant", "optimizer adamw_8bit") from None


def _recorded(config: Config) -> dict[str, Any]:
    """The configuration as a run folder keeps it; an adapter that is trained further brings its own LoRA settings."""
    flat = config.to_json()
    if config.base.adapter is None:
        return flat
    before = read_run(config.base.adapter).get("config", {})
    own = json.loads((adapter_folder(config.base.adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    flat |= {key: own.get(key) for key in ("lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias")}
    return {**flat, "lora_r": own.get("r"), "rslora": own.get("use_rslora"), "parts": before.get("parts")}


def _adapter_identity(adapter: str | None) -> dict[str, str] | None:
    if adapter is None:
        return None
    name = Path(adapter).resolve().name if Path(adapter).is_dir() else adapter
    return {"name": name, "sha256": sha256_file(adapter_folder(adapter) / "adapter_model.safetensors")}


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
