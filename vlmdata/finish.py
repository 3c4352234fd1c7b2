"""The end of a conversion: rejects, dataset card, and last the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import vlmdata
from vlmdata.adapter import title
from vlmdata.atomic import replacing, write_lines
from vlmdata.card import card
from vlmdata.errors import DataError
from vlmdata.lock import locked
from vlmdata.manifest import CARD, MANIFEST, ImageCounts, Manifest, RowCounts, add_counts
from vlmdata.output import remove_leftovers
from vlmdata.places import place
from vlmdata.plan import PLAN, Plan
from vlmdata.rejects import REJECTS, REJECTS_FILE, reject_lines
from vlmdata.source import load
from vlmdata.work import Outcome

__all__ = ["finalize", "finish"]


def finalize(out: str | Path) -> Manifest:
    """Finish a conversion whose shards were made by several ranks.

    Args:
        out: the folder they wrote to.

    Raises:
        MissingError, DataError: there is no planned conversion, or shards are missing.
    """
    folder = place(out)
    plan = Plan.read(folder)
    if not plan.tasks:
        raise DataError(f"{folder / PLAN} names no shards; it was changed: convert again with --overwrite")
    with locked(folder):
        if (folder / MANIFEST).exists():
            return Manifest.read(folder)
        outcomes = [Outcome.finished(task, folder) for task in plan.tasks]
        missing = [task.shard for task, outcome in zip(plan.tasks, outcomes, strict=True) if outcome is None]
        if missing:
            shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise DataError(
                f"{folder} lacks {len(missing)} of {len(plan.tasks)} shards ({shown}); "
                "give the same command to the ranks that did not end, then finalize again"
            )
        return finish(folder, plan, [outcome for outcome in outcomes if outcome is not None])


def finish(out: Path, plan: Plan, outcomes: Sequence[Outcome]) -> Manifest:
    """Write ``rejects.jsonl``, the card and the manifest.

    Raises:
        DataError: not one row could be kept.
    """
    manifest = _manifest(plan, outcomes)
    files = [out / REJECTS / outcome.shard.name for outcome in outcomes if REJECTS in outcome.shard.beside]
    write_lines(out / REJECTS_FILE, reject_lines(iter(files)))
    if manifest.rows.kept == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in manifest.rejected.items())
        first = next(reject_lines(iter(files)))
        raise DataError(
            f"not one of {manifest.rows.read} rows could be kept ({reasons}); "
            f"the first, {first['id']}: {first['detail']}; all are in {out / REJECTS_FILE}"
            + ("; --image-root says where image paths start" if "image_not_found" in manifest.rejected else "")
        )
    with replacing(out / CARD) as temporary:
        temporary.write_text(card(manifest), encoding="utf-8")
    manifest.write(out)
    remove_leftovers(out)
    return manifest


def _manifest(plan: Plan, outcomes: Sequence[Outcome]) -> Manifest:
    import PIL
    import pyarrow

    rejected: dict[str, int] = {}
    images = ImageCounts()
    for outcome in outcomes:
        images.add(outcome.shard.images)
        add_counts(rejected, outcome.rejected)
    source, options = load(plan.source), dict(plan.options)
    kept = sum(outcome.kept for outcome in outcomes)
    options.pop("image_root")  # names a place on one machine
    return Manifest(
        kind=plan.kind,
        source=title(plan.source),
        url=source.url,
        licence=options.pop("licence"),
        config=options.pop("config"),
        split=options.pop("split"),
        revision=options.pop("revision"),
        options=options,
        rows=RowCounts(sum(outcome.read for outcome in outcomes), kept, sum(rejected.values())),
        rejected=rejected,
        records=sum(outcome.shard.rows for outcome in outcomes),
        images=images,
        inputs=plan.inputs,
        shards=tuple(outcome.shard for outcome in outcomes),
        label_names=plan.reading.label_names,
        versions={
            "vlmdata": vlmdata.__version__,
            "pyarrow": pyarrow.__version__,
            "pillow": PIL.__version__,
            "zlib_ng": version("zlib-ng"),
        },
    )
