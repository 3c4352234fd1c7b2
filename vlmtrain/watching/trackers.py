"""Where figures go besides ``log.jsonl``: W&B, TensorBoard, Trackio, through transformers' own integrations.

Names are transformers' (``train/loss``, ``eval/rewards/accuracies``). What is sent as the run's settings is the
resolved configuration and transformers' arguments with the run folder's name in the place of its path.
W&B in offline mode: ``WANDB_MODE=offline``, later ``wandb sync``. TensorBoard: ``tensorboard --logdir RUN``.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import netrc
import os
import secrets
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.atomic import write_json
from vlmdata.errors import ConfigError, DependencyError
from vlmtrain.keys import Watching

if TYPE_CHECKING:
    from vlmtrain.job import Job

__all__ = ["About", "Trackers", "check", "check_keys", "chosen"]

PROJECT = "vlmtrain"


def chosen(watching: Watching) -> tuple[str, ...]:
    """The trackers of a run, each once."""
    return tuple(dict.fromkeys(name for name in watching.report_to if name != "none"))


def check_keys(watching: Watching) -> None:
    """Refuse trackers that do not go together, or models that are to go where they cannot.

    Raises:
        ConfigError: the first fault.
    """
    if "none" in watching.report_to and len(watching.report_to) > 1:
        raise ConfigError(f"report_to is {', '.join(watching.report_to)}: none stands alone")
    if watching.log_model != "no" and "wandb" not in chosen(watching):
        raise ConfigError(f"log_model {watching.log_model} is W&B's: add wandb to report_to")


def check(watching: Watching) -> None:
    """Refuse trackers that cannot be reached.

    Raises:
        DependencyError: one is not installed.
        ConfigError: W&B has no key.
    """
    for name in chosen(watching):
        if importlib.util.find_spec(name) is None:
            raise DependencyError(name, name, f"report_to {name}")
    if "wandb" in chosen(watching):
        _check_login()


def _check_login() -> None:
    """Without a key W&B would ask for one on the terminal, or fail after the model is loaded."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled", "dryrun") or wandb.run is not None:
        return
    host = urllib.parse.urlsplit(settings.base_url).hostname or ""
    place = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        known = netrc.netrc(str(place)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if not (known or settings.api_key or settings.identity_token_file):
        ways = "set WANDB_API_KEY, run wandb login, or set WANDB_MODE=offline"
        raise ConfigError(f"report_to wandb: nobody is logged in; {ways}")


class Trackers:
    """The trackers of one run; of several processes the first one has some.

    Attributes:
        callbacks: to be added to the trainer.
    """

    def __init__(self, job: Job) -> None:
        """Make what is asked for; nothing is sent before training begins."""
        from vlmtrain.distributed import is_first

        watching = job.config.watching
        self.callbacks: list[Any] = []
        self._finished = False
        names = chosen(watching) if is_first() else ()
        if names:
            from vlmtrain.watching.callbacks import CALLBACKS

            about = About(job)
            self.callbacks = [CALLBACKS[name](about) for name in names]

    def table(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the sample answers of a step."""
        for callback in self.callbacks:
            callback.table(step, rows)

    def finish(self, out: Path | None) -> None:
        """Close them, once.

        Args:
            out: the finished run folder; None for a run that failed.
        """
        if not self._finished:
            self._finished = True
            for callback in self.callbacks:
                callback.finish(out)


class About:
    """What trackers are told of a run.

    Attributes:
        project: and ``name``: under which it is shown.
        settings: the resolved configuration, with base and data by name.
        folder: the run folder.
        log_model: no, end or checkpoint.
    """

    def __init__(self, job: Job) -> None:
        """Collect it."""
        watching = job.config.watching
        self.folder = job.folder.path
        self.project = watching.project or os.environ.get("WANDB_PROJECT") or PROJECT
        self.name = watching.run_name or self.folder.resolve().name
        self.log_model = watching.log_model
        identity = job.identity
        data = [entry["name"] for entry in identity["data"]]
        self.settings = {**identity["config"], "base": identity["base"], "data": data, "run_name": self.name}
        self.notes = job.folder.checkpoints / "trackers.json"
        self.say = job.reporter.say

    def shown(self, args: Any) -> Any:
        """Arguments of the trainer without the path of the run folder."""
        plain = copy.copy(args)
        object.__setattr__(plain, "output_dir", self.name)
        object.__setattr__(plain, "run_name", None)
        return plain

    def run_id(self) -> str:
        """The run's id at W&B, the same after ``--resume``."""
        try:
            known = json.loads(self.notes.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        if "wandb" not in known:
            known["wandb"] = secrets.token_hex(8)
            write_json(self.notes, known)
        return str(known["wandb"])
