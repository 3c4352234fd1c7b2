"""Contamination: rows of a training set that hold an image of an evaluation set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmdata.atomic import write_json
from vlmdata.dedup import Neighbours, check_method, write_without
from vlmdata.derive import Derived, Drop
from vlmdata.errors import ConfigError, DataError, OutputExistsError
from vlmdata.image_keys import By, EvalImages, Key, evaluation_images, image_keys
from vlmdata.progress import Progress
from vlmdata.publish import check_output
from vlmdata.report_file import check_file
from vlmdata.shards import open_shards
from vlmdata.sizes import DEFAULT_SHARD_SIZE, parse_size
from vlmdata.terminal import harmless

__all__ = ["Contamination", "Match", "contamination", "contamination_lines"]

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Match:
    """An image of the training set that stands in an evaluation set.

    Attributes:
        row: number of the training row, from 0.
        id: its id.
        image: which of its images, from 0.
        evaluation: name of the evaluation set.
        name: of the image there.
        distance: bits of 64 their looks differ in; None where bytes or pixels were compared.
    """

    row: int
    id: str
    image: int
    evaluation: str
    name: str
    distance: int | None


@dataclass(frozen=True, slots=True)
class Contamination:
    """What was found.

    Attributes:
        path: the training set.
        by: how images were compared.
        distance: bits that might differ; None where bytes or pixels were compared.
        rows: of the training set.
        evaluations: the sets it was compared with.
        matches: in the order of the rows, one for each image.
        dataset: without the rows; None where only a report was asked for.
    """

    path: Path
    by: str
    distance: int | None
    rows: int
    evaluations: tuple[EvalImages, ...]
    matches: list[Match]
    dataset: Derived | None

    @property
    def contaminated(self) -> int:
        """Rows with at least one match."""
        return len({match.row for match in self.matches})

    def to_json(self) -> dict[str, Any]:
        """The report."""
        return {
            "training": self.path.resolve().name,
            "by": self.by,
            "distance": self.distance,
            "rows": self.rows,
            "contaminated": self.contaminated,
            "evaluations": [
                {
                    "name": held.name,
                    "images": len(held.images),
                    "unreadable": [{"file": name, "detail": detail} for name, detail in held.unreadable],
                    "found": len({match.name for match in self.matches if match.evaluation == held.name}),
                    "rows": len({match.row for match in self.matches if match.evaluation == held.name}),
                }
                for held in self.evaluations
            ],
            "matches": [asdict(match) for match in self.matches],
        }


def contamination(
    path: str | Path,
    against: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    by: By = "bytes",
    distance: int | None = None,
    workers: int = 1,
    report: str | Path | None = None,
    shard_size: int | str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    progress: bool = False,
) -> Contamination:
    """Find the rows that hold an image of an evaluation set.

    Args:
        path: folder of a converted dataset.
        against: evaluation sets: converted datasets, or folders of pictures.
        out: folder to write the dataset without these rows; None only reports.
        by: how images are compared.
        distance: for ``perceptual``, bits of 64 that may differ.
        workers: processes that decode; they do not change the result.
        report: a JSON file to write, with every match.
        shard_size: bytes of one shard, as a number or like "100MB".
        overwrite: replace a dataset in ``out``, and the report.
        progress: show progress on stderr.

    Raises:
        VlmError: an option, the input or the output is not as it must be; or not one row would be left.
    """
    limit = parse_size(shard_size)
    bits = check_method(by, distance, workers)
    shards = open_shards(Path(path))
    sets = [Path(folder) for folder in against]
    _check_names(sets)
    if out is not None:
        check_output(Path(out), [shards.path, *sets], overwrite=overwrite)
    if report is not None:
        _check_report(Path(report), [shards.path, *sets, *([Path(out)] if out else [])], overwrite)
    evaluations = tuple(evaluation_images(folder, by, workers) for folder in sets)
    with Progress("images", len(shards), shown=progress) as bar:
        keys = image_keys(shards, by, workers, bar.advance)
    ids = [row["id"] for row in shards.rows(["id"])]
    near = Neighbours(_hashes(keys, evaluations), bits) if by == "perceptual" else None
    matches = _matches(keys, ids, evaluations, near)
    drops = _drops(matches)
    if out is not None and len(drops) == len(shards):
        raise DataError(f"every row of {path} holds an image of an evaluation set; nothing would be left")
    made = None
    counted = bits if near else None
    if out is not None:
        options = {"by": by, "distance": counted, "against": [held.name for held in evaluations], "shard_bytes": limit}
        made = write_without(shards, Path(out), drops, "dedup", options, overwrite=overwrite, progress=progress)
    found = Contamination(Path(path), by, counted, len(shards), evaluations, matches, made)
    if report is not None:
        write_json(Path(report), found.to_json())
    return found


def contamination_lines(found: Contamination) -> list[str]:
    """A table of the evaluation sets and of the first matches."""
    told = found.to_json()
    width = max(len("evaluation"), *(len(held["name"]) for held in told["evaluations"]))
    lines = [f"{'evaluation':{width}} {'images':>9} {'found':>9} {'rows':>9}"]
    for held in told["evaluations"]:
        lines.append(f"{held['name']:{width}} {held['images']:>9,} {held['found']:>9,} {held['rows']:>9,}")
    for held in told["evaluations"]:
        if held["unreadable"]:
            first = held["unreadable"][0]
            what = harmless(f"{first['file']}: {first['detail']}")
            lines.append(f"{held['name']}: {len(held['unreadable'])} files not compared; {what}")
    lines.append(
        f"rows     {found.contaminated:,} of {found.rows:,} hold an image of an evaluation set (by {found.by})"
    )
    for match in found.matches[:_SHOWN]:
        bits = "" if match.distance is None else f", {match.distance} bits apart"
        place = harmless(f"{match.id} image {match.image}: {match.evaluation}/{match.name}")
        lines.append(f"         {place}{bits}")
    if len(found.matches) > _SHOWN:
        lines.append(f"         and {len(found.matches) - _SHOWN:,} more; --report FILE writes all")
    return lines


def _check_names(sets: Sequence[Path]) -> None:
    names = [folder.resolve().name for folder in sets]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"two evaluation sets are named {twice[0]}; give them one by one")


def _check_report(report: Path, folders: Sequence[Path], overwrite: bool) -> None:
    """Refuse a report that cannot be written, or that would stand among the data or in the new dataset."""
    real = report.resolve()
    around = next((folder for folder in folders if real.is_relative_to(folder.resolve())), None)
    if around is not None:
        raise OutputExistsError(f"--report {report} lies in {around}; give a place beside it")
    check_file(report, "--report", overwrite=overwrite)


def _hashes(keys: Sequence[tuple[Key, ...]], evaluations: Sequence[EvalImages]) -> list[int]:
    ours = [int(key) for held in keys for key in held]
    return ours + [int(key) for found in evaluations for _, held in found.images for key in held]


def _matches(
    keys: Sequence[tuple[Key, ...]], ids: Sequence[str], evaluations: Sequence[EvalImages], near: Neighbours | None
) -> list[Match]:
    """For each image the nearest of every evaluation set, if there is one; of several the first."""
    matches = []
    known: list[dict[Key, str]] = []
    for found in evaluations:
        names: dict[Key, str] = {}
        for name, held in found.images:
            for key in held:
                names.setdefault(key, name)
        known.append(names)
    for row, held in enumerate(keys):
        for image, key in enumerate(held):
            around: Sequence[Key] = [key] if near is None else near.of(int(key))
            for found, names in zip(evaluations, known, strict=True):
                hits = [(other, names[other]) for other in around if other in names]
                if not hits:
                    continue
                apart = [None if near is None else (int(key) ^ int(other)).bit_count() for other, _ in hits]
                best = min(range(len(hits)), key=lambda place: (apart[place] or 0, hits[place][1]))
                matches.append(Match(row, ids[row], image, found.name, hits[best][1], apart[best]))
    return matches


def _drops(matches: Sequence[Match]) -> list[Drop]:
    """One for each row, with its first match."""
    first: dict[int, Match] = {}
    for match in matches:
        first.setdefault(match.row, match)
    return [
        Drop(row, match.id, "contaminated", f"image {match.image} is {match.evaluation}/{match.name}")
        for row, match in first.items()
    ]
