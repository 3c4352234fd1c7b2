"""The run folder: an adapter folder that also says how it came to be.

``OUT/checkpoints/run.json`` is written first and says what the run is, so that ``--resume`` goes on with the same
thing; ``OUT/vlmtrain.json`` is written last, so that it stands for a finished run. No file names a path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.atomic import write_json
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmtrain.checkpoints import newest, step_of
from vlmtrain.keys import WATCHED_ONLY

__all__ = ["FREE", "RunFolder", "RunResult"]

# What may differ between a killed run and its --resume without changing its weights.
FREE = (
    "workers", "logging_steps", "keep_checkpoints", "save_steps", "push_to_hub", "hub_private", "cache_vision_gb",
    "cache_gb", "cache_in", "reference_cache", "gradient_checkpointing", "checkpoint_layers",
    *WATCHED_ONLY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        out: the run folder.
        metrics: as in ``metrics.json``.
        config: the resolved configuration, as in ``vlmtrain.json``.
    """

    out: Path
    metrics: dict[str, Any]
    config: dict[str, Any]


class RunFolder:
    """One run's output folder."""

    def __init__(self, out: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        """Look at what is there.

        Raises:
            OutputExistsError: something is, and neither flag was given.
            ConfigError: both flags.
        """
        self.path = Path(out)
        if overwrite and resume:
            raise ConfigError("--overwrite and --resume exclude each other")
        self.resume, self.replace = resume, False
        if self.path.is_file():
            raise OutputExistsError(f"{out} is a file, expected a folder to write to")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        ours = (self.path / "vlmtrain.json").is_file() or self.checkpoints.is_dir()
        if not ours:
            raise OutputExistsError(f"{out} is not empty and not a run folder: choose another --out")
        if not overwrite and not resume:
            raise OutputExistsError(f"{out} holds a run: --resume goes on with it, --overwrite replaces it")
        self.replace = overwrite

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "log.jsonl"

    def finished(self, config: Mapping[str, Any], data: Mapping[str, Any]) -> RunResult | None:
        """The result of a run that is complete already, when resuming.

        Args:
            config: the configuration asked for.
            data: ``data`` and ``eval_data`` as a run folder records them.

        Raises:
            ConfigError: it was made with another configuration.
            DataError: it was made of other data.
        """
        if not self.resume or not (self.path / "vlmtrain.json").is_file():
            return None
        run = json.loads((self.path / "vlmtrain.json").read_text(encoding="utf-8"))
        _compare(run, {**run, **data, "config": json.loads(json.dumps(config))})
        metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        return RunResult(self.path, metrics, run["config"])

    def start(self, identity: Mapping[str, Any], threads: int, processes: int = 1) -> tuple[Path | None, list[str]]:
        """Begin, or go on; gives the checkpoint to go on from, and one line for each newer one that is not whole.

        Args:
            identity: what the run is: configuration, base hash, data.
            threads: how many this process computes with; see :meth:`threads`.
            processes: how many share the run.

        Raises:
            ConfigError: ``--resume`` with something else than the run was started with.
        """
        note = self.checkpoints / "run.json"
        plain = json.loads(json.dumps({**identity, "threads": threads, "processes": processes}))
        if self.resume and note.is_file():
            _compare(json.loads(note.read_text(encoding="utf-8")), plain)
            last, faults = newest(self.checkpoints)
            self._cut_log(last)
            return last, faults
        if self.replace:
            shutil.rmtree(self.path)
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MissingError(f"cannot write to {self.path}: {error.strerror}") from error
        write_json(note, plain)
        self._cut_log(None)
        return None, []

    def threads(self) -> int:
        """How many threads the run was started with."""
        return int(json.loads((self.checkpoints / "run.json").read_text(encoding="utf-8"))["threads"])

    def _cut_log(self, checkpoint: Path | None) -> None:
        """Forget logged steps that will be done again."""
        if not self.log.is_file():
            return
        step = step_of(checkpoint) if checkpoint else 0
        lines = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
            except (ValueError, KeyError):
                break
        self.log.write_text("".join(lines), encoding="utf-8")


def _compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    faults = []
    for key in sorted({*before["config"], *now["config"]} - {*FREE}):
        old, new = before["config"].get(key), now["config"].get(key)
        if old != new:
            faults.append(f"{key} was {old}, is {new}")
    for key in ("base", "base_hash", "adapter", "processes"):
        if before.get(key) != now.get(key):
            faults.append(f"{key} was {before.get(key)}, is {now.get(key)}")
    if faults:
        raise ConfigError(f"--resume needs the settings the run was started with: {'; '.join(faults)}")
    for key in ("data", "eval_data"):
        old, new = ([entry["manifest_sha256"] for entry in side.get(key, [])] for side in (before, now))
        if old != new:
            raise DataError(f"--resume needs the data the run was started with: the {key} of this run has changed")
