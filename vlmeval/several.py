"""Several adapters and their base in one command: one load of the base, an evaluation folder each, one comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, OutputExistsError
from vlmeval import ranks, store
from vlmeval.opening import Who
from vlmeval.preflight import image_folder
from vlmeval.run import Request

__all__ = ["PAGE", "evaluate_several"]

PAGE = "compare.html"


def evaluate_several(
    task: str = "amber",
    *,
    adapters: Sequence[str | Path],
    out: str | Path | None,
    model: str | None = None,
    data: str | Path | None = None,
    images: str | Path | None = None,
    limit: int | None = None,
    on_missing: str = "fail",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    command: str | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate a base and adapters on it: ``out/base``, ``out/NAME`` of each adapter, each a whole evaluation folder.

    Each can be looked at, scored again, resumed and compared as one that was made alone.

    Args:
        task: as of :func:`vlmeval.run.evaluate`, like everything else that is not told of here.
        adapters: run folders or PEFT adapters of one base; the folders below ``out`` have their names.
        out: the folder of all of them.
        model: the base; left out, the adapters' own.
        data: the task's data folder.
        images: image folder.
        limit: ask only that many items.
        on_missing: ``fail`` or ``skip``.
        resume: go on; what is finished is not asked again.
        overwrite: replace the evaluations in the folders.
        quiet: no progress on stderr.
        command: how this was called, for the record.
        **options: of the model, and the task's own.

    Returns:
        Folder name to the content of its ``report.json``; the base first.

    Raises:
        VlmError: anything a user can put right, said in one line.
    """
    if not adapters:
        raise ConfigError("no adapter is given: --with-base is for evaluating an adapter beside its base")
    if options.pop("responses", None) is not None:
        raise ConfigError("a responses file is scored alone: leave --with-base and further adapters out")
    if options.get("endpoint") is not None:
        raise ConfigError("--adapter is for a model loaded here and has no effect with --endpoint: leave it out")
    of_model = {one.name for one in fields(Who)} & options.keys()
    # Checks of a model with an adapter hold for all of them.
    who = Who(model=model, adapter=adapters[0], **{name: options.pop(name) for name in of_model})
    asked = Request(task, data, images, limit, on_missing, options, who, resume, overwrite, quiet, command)
    with ranks.together():
        opened = asked.open(out)
        assert out is not None
        shown = ranks.first(lambda: image_folder(opened.task, opened.benchmark.folder or opened.data, images))
        models = who.several(adapters, shown, with_base=True)
        places = {name: Path(out) / name for name, _ in models}
        ranks.first(lambda: _claim(Path(out), places, resume=resume, overwrite=overwrite))
        prepared = asked.prepare(opened, list(places.values()))
        return {name: asked.ask(prepared, one, places[name]) for name, one in models}


def _claim(out: Path, places: Mapping[str, Path], *, resume: bool, overwrite: bool) -> None:
    """Check that all folders may be written, before the first is."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, expected a folder")
    found = [name for name in store.FILES if (out / name).exists()]
    if found:
        raise OutputExistsError(
            f"{out} itself holds an evaluation ({found[0]}); several are written to folders below --out: give another"
        )
    for place in places.values():
        store.claim(place, resume=resume, overwrite=overwrite)
    if (out / PAGE).exists() and not (resume or overwrite):
        raise OutputExistsError(f"{out / PAGE} exists: go on with --resume, or replace it with --overwrite")
