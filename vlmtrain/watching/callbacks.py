"""transformers' callbacks for trackers, made to say what is ours: project, name and settings of the run, no path of it.

``table`` shows sample answers; ``finish`` is given the finished run folder, or None for a run that failed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from vlmtrain.watching.trackers import About

__all__ = ["CALLBACKS", "TensorBoard", "Trackio", "Wandb"]

Rows = Sequence[Mapping[str, Any]]
_COLUMNS = ("step", "id", "prompt", "reference", "answer")


class Wandb(WandbCallback):
    """Weights & Biases; the model it keeps is the finished run folder, not one saved a second time."""

    def __init__(self, about: About) -> None:
        """Begin nothing yet."""
        with _environment("WANDB_LOG_MODEL", "checkpoint" if about.log_model == "checkpoint" else "false"):
            super().__init__()
        self.about = about
        self._ours: Any = None
        self._shown: list[list[Any]] = []

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Begin a run, or go on with it after a resume; one that the caller has begun is used."""
        import wandb

        if wandb.run is None:
            about = self.about
            self._ours = wandb.init(
                project=about.project,
                name=about.name,
                id=about.run_id(),
                resume="allow",
                config=about.settings,
                settings=wandb.Settings(silent=True),
            )
            if self._ours.offline:
                about.say(f"wandb  offline; later: wandb sync {os.path.relpath(Path(self._ours.dir).parent)}")
            elif self._ours.url:
                about.say(f"wandb  {self._ours.url}")
        super().setup(self.about.shown(args), state, model, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """The model is kept when its folder is finished."""

    def table(self, step: int, rows: Rows) -> None:
        """A table of all samples so far."""
        import wandb

        if wandb.run is not None:
            self._shown += [[row[name] for name in _COLUMNS] for row in rows]
            shown = wandb.Table(columns=list(_COLUMNS), data=self._shown)
            wandb.log({"samples": shown, "train/global_step": step})

    def finish(self, out: Path | None) -> None:
        """Curves, and the model where it is wanted; then the end, unless the caller has begun the run."""
        import wandb

        run = wandb.run
        if run is None:
            return
        if out is not None and (out / "curves.png").is_file():
            run.log({"curves": wandb.Image(str(out / "curves.png"))})
        if out is not None and self.about.log_model != "no":
            artifact = wandb.Artifact(f"model-{self.about.name}", type="model")
            for path in sorted(out.iterdir()):
                if path.is_file():
                    artifact.add_file(str(path))
            run.log_artifact(artifact, aliases=["final_model"])
        if self._ours is not None:
            run.finish(exit_code=0 if out is not None else 1)


class TensorBoard(TensorBoardCallback):
    """TensorBoard, written into the run folder."""

    def __init__(self, about: About) -> None:
        """Write nothing yet."""
        super().__init__()
        self.about = about

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin; after a resume what was written beyond the checkpoint is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        step = state.global_step + 1 if state.global_step else None
        self.tb_writer = SummaryWriter(log_dir=str(self.about.folder / "tensorboard"), purge_step=step)
        super().on_train_begin(self.about.shown(args), state, control, **kwargs)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Open until ``finish``: the last evaluation comes after training."""

    def table(self, step: int, rows: Rows) -> None:
        """The samples of a step as a table in Markdown."""
        if self.tb_writer is not None:
            lines = [f"| {' | '.join(_cell(str(row[name])) for name in _COLUMNS[1:])} |" for row in rows]
            head = f"| {' | '.join(_COLUMNS[1:])} |\n|{'---|' * (len(_COLUMNS) - 1)}\n"
            self.tb_writer.add_text("samples", head + "\n".join(lines), step)
            self.tb_writer.flush()

    def finish(self, out: Path | None) -> None:
        """Close the file."""
        if self.tb_writer is not None:
            self.tb_writer.close()


class Trackio(TrackioCallback):
    """Trackio, on this machine unless TRACKIO_SPACE_ID says otherwise."""

    def __init__(self, about: About) -> None:
        """Begin nothing yet."""
        super().__init__()
        self.about, self.begun = about, False

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Begin a run, or go on with the one of this name."""
        shown = self.about.shown(args)
        object.__setattr__(shown, "project", self.about.project)
        object.__setattr__(shown, "run_name", self.about.name)
        super().setup(shown, state, model, **kwargs)
        import trackio

        trackio.config.update(self.about.settings, allow_val_change=True)
        self.begun = True

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Open until ``finish``: the last evaluation comes after training."""

    def table(self, step: int, rows: Rows) -> None:
        """The samples of a step as a table."""
        if self.begun:
            import pandas
            import trackio

            shown = trackio.Table(dataframe=pandas.DataFrame(list(rows)))
            trackio.log({"samples": shown, "train/global_step": step})

    def finish(self, out: Path | None) -> None:
        """Close the run."""
        if self.begun:
            import trackio

            trackio.finish()


CALLBACKS: Mapping[str, Callable[[About], Any]] = {"wandb": Wandb, "tensorboard": TensorBoard, "trackio": Trackio}


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable that transformers reads when its callback is made, and no other run is to see."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
