"""CHAIR: which objects descriptions name that are not in the image.

Paper:    https://arxiv.org/abs/1809.02156
Official: https://github.com/LisaAnne/Hallucination, ``utils/chair.py`` at 585f2d9
Data:     annotations of COCO's form, ``instances_*.json`` and ``captions_*.json``, of any set of categories; or
    shards of ``vlmdata convert`` with ``objects`` in their rows' meta, a list or a text with commas, as a column
    ``objects`` of a CSV becomes

An object is in the image when an instance is annotated or a reference caption names it. CHAIR-i is the share of named
objects, repeats included, that are not there; CHAIR-s the share of captions with one. Deviations, the first of which is
the reason not to compare digits with other reports:
    - the names of the 80 classes are the project's own; ``--synonyms`` takes the official ``synonyms.txt``;
    - plurals are found by rule, not by pattern's ``singularize``; a hyphen is a blank; the colour orange is no orange;
      more words that stand together are known ("train station" is no train).
Recall, objects and words are not in the official script; they tell a careful model from one that says little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, DataError, MissingError, choices
from vlmeval import breakdown
from vlmeval.charts import Chart, Scatter
from vlmeval.metrics import objects
from vlmeval.task import Benchmark, Item, Metric, Option, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_ALL = "all"
_PROMPT = "Please describe this image in detail."
_TRUTH = ("both", "instances", "captions")


@dataclass
class _Annotated:
    """Images by id, their objects, their reference captions, the categories, and the files they come from."""

    images: dict[int | str, str] = field(default_factory=dict)
    there: dict[int | str, set[str]] = field(default_factory=dict)
    captions: dict[int | str, list[str]] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    from_instances: bool = False


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open annotations; every image is asked, or those whose ids a file lists."""
    from vlmeval.shardset import is_shards

    truth = settings.get("truth") or "both"
    if truth not in _TRUTH:
        raise ConfigError(f"--truth is {truth!r}; valid: {choices(_TRUTH)}")
    names = _names(settings.get("synonyms"))
    found = _shards(data) if is_shards(data) else _coco(data, settings.get("split"), truth)
    find = objects.Objects(found.classes or names.synonyms, names)
    asked = _ids(settings.get("ids"), found.images)
    for ident in asked:
        named = (name for text in found.captions.get(ident, ()) for name, _ in find(text))
        found.there.setdefault(ident, set()).update(named)
    prompt = settings.get("prompt") or _PROMPT
    items = tuple(
        Item(ident, prompt, (found.images[ident],), sorted(found.there.get(ident, ())), (_ALL,), "text")
        for ident in asked
    )

    def score(item: Item, response: Response) -> Score:
        return _score(item, response, find)

    protocol = {
        "prompt": prompt,
        "truth": " and ".join(
            [*(["instances"] if found.from_instances else []), *(["captions"] if found.captions else [])]
        ),
        "classes": len(find.classes),
        "names": _named(settings.get("synonyms")),
    }
    notes = [] if found.from_instances and found.captions else [_half(found)]
    if settings.get("synonyms") is None:
        notes.append(
            "Objects are found by the packaged names; published CHAIR figures use the list of Rohrbach et al. 2018, "
            "which --synonyms takes."
        )
    return Benchmark(items, frozenset(found.images), found.data, protocol, score, _summary, tuple(notes))


def _half(found: _Annotated) -> str:
    one = "instance annotations" if found.from_instances else "reference captions"
    return f"Only {one} say what is in an image; the official CHAIR takes instances and reference captions together."


def _names(path: str | None) -> objects.Names:
    if path is None:
        return objects.packaged()
    try:
        return objects.parse(Path(path).read_text(encoding="utf-8-sig"), path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise MissingError(f"--synonyms {path} cannot be read: {error.strerror}") from None


def _named(path: str | None) -> str:
    return "packaged" if path is None else f"table {hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]}"


def _shards(data: Path) -> _Annotated:
    """Rows of a converted dataset whose meta lists what their image shows."""
    from vlmeval.shardset import open_set

    shards = open_set(data)
    found = _Annotated(data=dict(shards.data), from_instances=True)
    classes: set[str] = set()
    for row in shards.rows(["meta"]):
        meta = json.loads(row["meta"]) if row["meta"] else {}
        listed = meta.get("objects") if isinstance(meta, dict) else None
        if isinstance(listed, str):
            listed = [name.strip() for name in listed.split(",") if name.strip()]
        if isinstance(listed, list) and row["image_sha256"]:
            found.images[row["id"]] = row["image_sha256"][0]
            found.there[row["id"]] = {str(name) for name in listed}
            classes |= found.there[row["id"]]
    if not found.images:
        raise DataError(f"no row of {data} has objects in its meta, which say what its image shows")
    found.classes = sorted(classes)
    return found


def _coco(data: Path, split: str | None, truth: str) -> _Annotated:
    found = _Annotated()
    for path in _files(data, split, truth):
        _read(path, found)
    if not found.images:
        raise DataError(f"{data}: the annotations list no images")
    return found


def _files(data: Path, split: str | None, truth: str) -> list[Path]:
    """The annotation files of a folder, its ``annotations`` folder, or the file itself."""
    if data.is_file():
        return [data]
    kinds = ("instances", "captions") if truth == "both" else (truth,)
    files = []
    for kind in kinds:
        listed = [path for folder in (data, data / "annotations") for path in sorted(folder.glob(f"{kind}_*.json"))]
        fitting = [path for path in listed if split in (None, path.stem.removeprefix(f"{kind}_"))]
        if len(fitting) > 1:
            names = choices(path.stem.removeprefix(f"{kind}_") for path in fitting)
            raise ConfigError(f"{data} has {len(fitting)} files of {kind}: say which with --split; valid: {names}")
        if listed and not fitting:
            names = choices(path.stem.removeprefix(f"{kind}_") for path in listed)
            raise MissingError(f"{data} has no {kind}_{split}.json; valid for --split: {names}")
        files += fitting
    if not files:
        raise MissingError(
            f"no annotations in {data}: expected {kinds[0]}_*.json there or in {data / 'annotations'}, or one such file"
        )
    return files


def _read(path: Path, found: _Annotated) -> None:
    """Take in one file: what its annotations are of says their keys."""
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    found.data[path.name] = hashlib.sha256(raw).hexdigest()
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise DataError(f"{path}: expected an object with images and annotations, as COCO's files are")
    try:
        for image in value["images"]:
            found.images[image["id"]] = str(image["file_name"])
        called = {row["id"]: str(row["name"]) for row in value.get("categories") or ()}
        found.classes = found.classes or list(called.values())
        for note in value["annotations"]:
            ident = note["image_id"]
            if "caption" in note:
                found.captions.setdefault(ident, []).append(str(note["caption"]))
            else:
                found.there.setdefault(ident, set()).add(called[note["category_id"]])
                found.from_instances = True
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: an image, category or annotation lacks {error}; expected images (id, file_name) and annotations "
            "(image_id with category_id or caption)"
        ) from None


def _ids(path: str | None, images: Mapping[int | str, str]) -> list[int | str]:
    """The images that are asked, in the annotations' order."""
    if path is None:
        return list(images)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        listed = json.loads(text) if text.lstrip().startswith("[") else [line.strip() for line in text.split("\n")]
    except OSError as error:
        raise MissingError(f"--ids {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"--ids {path} is neither a JSON array nor an id a line: {error}") from None
    by_text = {str(ident): ident for ident in images}
    wanted = [str(ident) for ident in listed if str(ident)]
    strange = [ident for ident in wanted if ident not in by_text]
    if strange:
        raise DataError(f"--ids {path}: {len(strange)} of {len(wanted)} are no images of the annotations: {strange[0]}")
    if not wanted:
        raise DataError(f"--ids {path} lists no ids")
    chosen = set(wanted)
    return [ident for text, ident in by_text.items() if text in chosen]


def _score(item: Item, response: Response, find: objects.Objects) -> Score:
    text = response.text or ""
    named = find(text)
    wrong = [name for name, _ in named if name not in item.target]
    said = {name for name, _ in named}
    counts = {
        "captions": 1.0,
        "named": float(len(named)),
        "wrong": float(len(wrong)),
        "dirty": float(bool(wrong)),
        "there": float(len(item.target)),
        "found": float(len(said & set(item.target))),
        "words": float(len(text.split())),
    }
    detail = {
        "nouns": [words for _, words in named],
        "hallucinated": [words for name, words in named if name not in item.target],
        "missed": [name for name in item.target if name not in said],
        "objects": [name for name, _ in named],
        "invented": wrong,
    }
    return Score(item, response.text, counts, detail=detail)


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    silent = sum(not score.counts["named"] for score in scores)
    summary: dict[str, Any] = {"objects": breakdown.objects(scores), "invented": breakdown.invented(scores)}
    note = f"{silent} of {len(scores)} captions name no object: they lower CHAIR as if they were right; look at recall."
    return {**summary, "tables": breakdown.tables(summary), "notes": [note] if silent else []}


def _metric(name: str, label: str, part: str, of: str, *, share: bool = True, **more: Any) -> Metric:
    def value(sums: Sums) -> Any:
        return (100 if share else 1) * ratio(sums[part], sums[of])

    return Metric(name, label, (_ALL,), value, of, percent=share, proportion=(part, of) if share else None, **more)


def _charts(report: Mapping[str, Any]) -> list[Chart]:
    figures = report["exact"].get(_ALL, {})
    x, y = (figures.get(name, {}).get("value") for name in ("chair_i", "recall"))
    if x is None or y is None:
        return []
    return [
        Scatter(
            "What captions invent and what they find", "CHAIR-i (less is better)", "Recall", [(x, y, "this run", True)]
        )
    ]


TASK = Task(
    name="chair",
    summary="CHAIR: objects that descriptions invent, on COCO-style annotations.",
    open=_open,
    groups={_ALL: "Descriptions"},
    metrics=(
        _metric("chair_i", "CHAIR-i", "wrong", "named", better="low"),
        _metric("chair_s", "CHAIR-s", "dirty", "captions", better="low", independent=True),
        _metric("recall", "Recall", "found", "there"),
        _metric("objects", "Objects", "named", "captions", share=False, better=None, column="rates"),
        _metric("words", "Words", "words", "captions", share=False, better=None, column="rates"),
    ),
    headline=((_ALL, "chair_i"), (_ALL, "chair_s"), (_ALL, "recall"), (_ALL, "objects"), (_ALL, "words")),
    options=(
        Option("prompt", f"What is asked of every image.  [default: {_PROMPT}]"),
        Option("split", "Of several files in a folder the one that is meant: val2014."),
        Option("truth", "What says that an object is there.", "both", _TRUTH),
        Option("ids", "File with the ids of the images that are asked, one a line, or a JSON array."),
        Option("synonyms", "File of classes and their other names, one class a line, as the official synonyms.txt."),
    ),
    charts=_charts,
)
