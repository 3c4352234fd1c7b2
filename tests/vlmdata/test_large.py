"""Inputs larger than 32-bit offsets reach, and memory that does not grow with the input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rawfiles import FOOTBALL, encoded

from vlmdata import work
from vlmdata.convert import convert
from vlmdata.shards import open_shards
from vlmdata.validate import validate

CODE = """
import sys
from pathlib import Path
from vlmdata.cli import main
main(["convert", "football", *sys.argv[1:], "--workers", "1"], standalone_mode=False)
status = Path("/proc/self/status").read_text()  # ru_maxrss begins with what the parent had at its highest
print("peak", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def write_rows(path: Path, rows: int, size: int, groups: int) -> Path:
    """Rows whose images have ``size`` bytes behind their end mark, where they do no harm."""
    picture = encoded(size=(64, 48))
    padded = pa.scalar(picture + bytes(size - len(picture)), pa.binary())
    with pq.ParquetWriter(path, FOOTBALL, compression="NONE", use_dictionary=False, max_rows_per_page=4) as writer:
        for _ in range(groups):
            count = rows // groups
            images = pa.chunked_array([pa.array([padded.as_py()], pa.binary())] * count)
            parts = [
                pa.StructArray.from_arrays([chunk, pa.nulls(len(chunk), pa.string())], ["bytes", "path"])
                for chunk in images.chunks
            ]
            texts = pa.chunked_array([pa.array(["x"])] * count)
            table = pa.table([pa.chunked_array(parts), texts], schema=FOOTBALL)
            writer.write_table(table, row_group_size=count)
    return path


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")


def peak_bytes(raw: Path, out: Path) -> int:
    run = subprocess.run([sys.executable, "-c", CODE, str(raw), "--out", str(out)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split("peak ")[1]) * 1024


@needs_proc
@pytest.mark.slow
def test_a_row_group_of_more_than_two_gibibytes(tmp_path: Path) -> None:
    raw = write_rows(tmp_path / "x.parquet", 280, 8 << 20, groups=1)
    assert raw.stat().st_size > 2 << 30 and pq.read_metadata(raw).num_row_groups == 1
    peak = peak_bytes(raw, tmp_path / "out")
    dataset = open_shards(tmp_path / "out")
    assert len(dataset) == dataset.manifest.images.passed == 280
    assert list(validate(tmp_path / "out", sample=0)) == []
    assert peak < 1 << 30, "the input is not held in memory"


@needs_proc
@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    small, large = (write_rows(tmp_path / f"{n}.parquet", n, 80_000, groups=n // 100) for n in (2_000, 20_000))
    first, second = (peak_bytes(raw, tmp_path / f"out-{raw.stem}") for raw in (small, large))
    assert second <= 1.15 * first


def test_images_that_do_not_fit_in_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_rows(tmp_path / "x.parquet", 2, 5_000, groups=1)
    monkeypatch.setattr(work, "_ROW_BYTES", 6_000)
    assert convert("football", raw, tmp_path / "fits").kept == 2
    monkeypatch.setattr(work, "_ROW_BYTES", 4_000)
    with pytest.raises(Exception, match="image_too_large 2"):
        convert("football", raw, tmp_path / "out")
