"""The whole sample world on disk: raw files of five sources and a test set."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vlmdata.errors import ConfigError, OutputExistsError

__all__ = ["SampleWorld", "write_sample"]


@dataclass(frozen=True, slots=True)
class SampleWorld:
    """Where the sample world lies and what is in it: (source, path below ``out``, rows)."""

    out: Path
    summary: tuple[tuple[str, str, int], ...]


def write_sample(
    out: str | Path, *, seed: int = 0, rows: int = 600, test_scenes: int = 120, overwrite: bool = False
) -> SampleWorld:
    """Draw the sample world and write it out.

    Args:
        out: folder to make.
        seed: the same seed gives the same files.
        rows: rows of the_cauldron and rlaif_v; half as many for food101, a quarter for football and ocr_json.
        test_scenes: pictures of the AMBER-style test set, which has its own layout and about 16 questions each.
        overwrite: replace an existing folder.

    Raises:
        ConfigError: too few rows.
        OutputExistsError: ``out`` is there and not empty.
    """
    from vlmdata.sample import raw
    from vlmdata.sample.amber import write_amber

    out = Path(out)
    if rows < 4 or test_scenes < 1:
        raise ConfigError(f"the sample world needs at least 4 rows and 1 test scene, got {rows} and {test_scenes}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise OutputExistsError(f"{out} is already there; give another --out, or --overwrite to replace it")
        _clear(out)
    written = {
        "the_cauldron": raw.write_the_cauldron(out / "the_cauldron", seed, rows),
        "rlaif_v": raw.write_rlaif_v(out / "rlaif_v", seed, rows),
        "food101": raw.write_food101(out / "food101", seed, max(1, rows // 2)),
        "football": raw.write_football(out / "football", seed, max(1, rows // 4)),
        "ocr_json": raw.write_ocr_json(out / "ocr_json", seed, max(1, rows // 4)),
        "amber": write_amber(out / "amber", seed, test_scenes),
    }
    summary = tuple(
        (name, str(Path(path).relative_to(out)), count)
        for name, files in written.items()
        for path, count in files.items()
    )
    return SampleWorld(out, summary)


_MADE = ("the_cauldron", "rlaif_v", "food101", "football", "ocr_json", "amber")


def _clear(out: Path) -> None:
    strange = [] if out.is_dir() else [out.name]
    if out.is_dir():
        strange = sorted(path.name for path in out.iterdir() if path.name not in _MADE)
    if strange:
        raise OutputExistsError(f"{out} holds {strange[0]}, which no sample world has; give another --out")
    shutil.rmtree(out)
