"""Whether a model was trained on what it is asked about. Reads manifests, ``vlmtrain.json`` and columns of hashes only.

A run folder says by the hash of their manifests which datasets it was trained on, and where it looked while it trained.
Those hashes are compared with the evaluation data's own, with those of the datasets they were taken from, and with the
datasets that lie near them (beside them or one folder below that, beside their folder), as the parts of a split do;
where the training data are found there, images are compared by sha256.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdata.manifest import MANIFEST

__all__ = ["overlap"]

_MOST = 500


def overlap(source: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """What training and evaluation data share.

    Args:
        source: where the answers come from: ``adapter`` and ``model`` are places of run folders, where they are.
        folder: the converted dataset that was asked; None for other data.

    Returns:
        ``trained_on`` (names of datasets), ``checked`` (those of them that could be compared), ``images`` (different
        images of the evaluation data) and ``shared`` (those of them that are training images); and ``notes`` for a
        reader. Empty where nothing is known of the training.
    """
    run = _run(source)
    trained, watched = (_digests(run, key) for key in ("data", "eval_data"))
    if folder is None or not (folder / MANIFEST).is_file() or not trained:
        return {}
    own, parents = _digest(folder), _parents(folder)
    ours = _images(folder)
    shared: set[str] = set()
    checked, notes = [], []
    for digest, name in trained.items():
        if digest == own or digest in parents:
            shared |= ours
            checked.append(name)
    near = {digest: place for place, digest in _near(folder) if digest in trained}
    for digest, place in near.items():
        if trained[digest] not in checked:
            shared |= ours & _images(place)
            checked.append(trained[digest])
    if shared:
        which = "All" if shared == ours else f"{len(shared)} of"
        notes.append(
            f"{which} {len(ours)} images of these data are images the model was trained on ({', '.join(checked)}): "
            "figures on them say little about new ones."
        )
    elif own in watched:
        notes.append("The model's training was watched on these data; where best weights were kept, they chose them.")
    found = {"trained_on": list(trained.values()), "checked": checked, "images": len(ours), "shared": len(shared)}
    return {**found, "notes": notes}


def _run(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the adapter's run folder says of itself, else the model's."""
    for key in ("adapter", "model"):
        place = source.get(key)
        file = Path(str(place)) / "vlmtrain.json" if place else None
        try:
            if file is not None and file.is_file():
                run = json.loads(file.read_text(encoding="utf-8"))
                return run if isinstance(run, dict) else {}
        except (OSError, ValueError):
            return {}
    return {}


def _digests(run: Mapping[str, Any], key: str) -> dict[str, str]:
    """Manifest hash to name of the datasets a run names under a key."""
    entries = run.get(key)
    listed = entries if isinstance(entries, list) else []
    return {entry["manifest_sha256"]: str(entry.get("name")) for entry in listed if "manifest_sha256" in entry}


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def _parents(folder: Path) -> set[str]:
    """Hashes of all datasets that one was taken from, as far as they are near."""
    found: set[str] = set()
    near = {digest: place for place, digest in _near(folder)}
    left = [folder]
    while left:
        place = left.pop()
        try:
            listed = json.loads((place / MANIFEST).read_bytes())["parents"]
            new = {parent["manifest_sha256"] for parent in listed} - found
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= new
        left.extend(near[digest] for digest in new if digest in near)
    return found


def _near(folder: Path) -> Iterator[tuple[Path, str]]:
    """Datasets that lie near one, with the hashes of their manifests."""
    here = folder.resolve()
    patterns = [(here.parent, "*"), (here.parent, "*/*"), (here.parent.parent, "*")]
    places = itertools.chain.from_iterable(place.glob(f"{depth}/{MANIFEST}") for place, depth in patterns)
    for file in dict.fromkeys(itertools.islice(places, _MOST)):
        try:
            yield file.parent, hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError:
            continue


def _images(folder: Path) -> set[str]:
    """Hashes of a dataset's images."""
    from vlmdata.errors import VlmError
    from vlmdata.shards import open_shards

    try:
        return {digest for row in open_shards(folder).rows(["image_sha256"]) for digest in row["image_sha256"]}
    except (VlmError, OSError):
        return set()
