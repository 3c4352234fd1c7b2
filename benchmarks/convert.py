"""Conversion with vlmdata against the ways of the write-ups: ``make bench-convert``.

Every way reads the same raw Parquet and runs as a whole process of its own, one process each; ways take turns, medians
are shown. Three inputs: ``mix`` (2,000 photo-like pictures, 12 % of them grey, EXIF-turned, RGBA or palette PNG, CMYK),
``clean`` (its upright RGB JPEGs alone) and, with ``--photos FOLDER``, real photographs repeated.

- ``vlmdata``: ``vlmdata convert --workers 1``, as it comes; ``vlmdata-2``: with two workers.
- ``map``: ``datasets.map`` that decodes, converts to RGB (alpha on white) and writes images and messages back, as the
  Unsloth and TRL write-ups do, then ``to_parquet``.
- ``map-thumbnail``: the same with ``Image.thumbnail``, as the DPO write-up does (scaled inputs only).
- ``list``: a list comprehension over the rows that does the same; nothing is written, all pictures stay in memory.
- ``copy``: a bare pyarrow copy of the same bytes; nothing is looked at. The floor.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.photos import write_raw

WAYS = ("vlmdata", "vlmdata-2", "map", "list", "copy")
SCALED_WAYS = ("vlmdata", "vlmdata-2", "map", "map-thumbnail", "list")
FIGURES = ("seconds", "cpu", "rows_s", "mb_s", "peak_mb", "out_mb")


def main() -> None:
    """Make the raw data, let the ways take turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="rows of the mix")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--photos", type=Path, help="folder of JPEGs for the third input")
    parser.add_argument("--only", help="ways to run, comma-separated")
    parser.add_argument("--inputs", help="inputs to run, comma-separated: mix, mix@0.5, clean, clean@0.5, photos ...")
    parser.add_argument("--memory", action="store_true", help="also compare the peak memory of ten times the rows")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", nargs=4, metavar=("WAY", "RAW", "OUT", "SCALE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, raw, out, scale = given.work
        _work(way, Path(raw), Path(out), float(scale))
        return
    only = given.only.split(",") if given.only else None
    with tempfile.TemporaryDirectory() as folder:
        raw = _in_a_process(write_raw, Path(folder) / "raw", given.rows, given.photos)
        figures = {}
        for name in given.inputs.split(",") if given.inputs else _inputs(raw):
            data, _, scale = name.partition("@")
            ways = [way for way in (SCALED_WAYS if scale else WAYS) if only is None or way in only]
            figures[name] = _take_turns(raw[data], float(scale or 1), ways, Path(folder) / "out", given.runs)
            print(_table(name, figures[name]), flush=True)
        if given.memory:
            figures["memory"] = _memory(raw["clean"], Path(folder), given.runs)
    if given.json:
        given.json.write_text(json.dumps({"cpus": os.cpu_count(), "figures": figures}, indent=1) + "\n")


def _in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Keep this process small: a child starts out with the peak memory of its parent."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _inputs(raw: dict[str, Path]) -> list[str]:
    return [name + scale for name in raw for scale in ("", "@0.5")]


def _take_turns(raw: Path, scale: float, ways: list[str], out: Path, runs: int) -> dict[str, list[dict[str, float]]]:
    import pyarrow.parquet as pq

    rows, size = pq.read_metadata(raw).num_rows, raw.stat().st_size
    _in_a_process(Path.read_bytes, raw)  # into the page cache, for all alike
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way in ways:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            figures[way].append(_timed(_command(way, raw, out, scale), rows, size, out))
    return figures


def _memory(raw: Path, folder: Path, runs: int) -> dict[str, list[dict[str, float]]]:
    """Peak memory of the clean input and of ten times as many rows, read as files and streamed through fsspec."""
    import pyarrow.parquet as pq

    large = folder / "ten.parquet"
    _in_a_process(_repeat, raw, large, 10)
    figures: dict[str, list[dict[str, float]]] = {}
    lines = ["\npeak memory", f"{'':<24}{'rows':>8}{'peak MB':>9}"]
    for name, prefix in (("file", ""), ("streamed", "file://")):
        for file in (raw, large):
            rows, size, out = pq.read_metadata(file).num_rows, file.stat().st_size, folder / "out"
            for _ in range(runs):
                shutil.rmtree(out, ignore_errors=True)
                command = _command("vlmdata", f"{prefix}{file}", out, 1)
                figures.setdefault(f"{name} {rows}", []).append(_timed(command, rows, size, out))
            peak = statistics.median(run["peak_mb"] for run in figures[f"{name} {rows}"])
            lines.append(f"{name:<24}{rows:>8,}{peak:>9,.0f}")
    print("\n".join(lines), flush=True)
    return figures


def _repeat(raw: Path, large: Path, times: int) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(raw) as file, pq.ParquetWriter(large, file.schema_arrow) as writer:
        for _ in range(times):
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))


def _command(way: str, raw: Path | str, out: Path, scale: float) -> list[str]:
    if way.startswith("vlmdata"):
        workers = "2" if way.endswith("-2") else "1"
        code = "from vlmdata.cli import main; main()"
        options = ["--out", str(out / "shards"), "--workers", workers, "--scale", str(scale)]
        return [sys.executable, "-c", code, "convert", "the_cauldron", str(raw), *options]
    return [sys.executable, "-m", "benchmarks.convert", "--work", way, str(raw), str(out), str(scale)]


def _timed(command: list[str], rows: int, size: int, out: Path) -> dict[str, float]:
    """Figures of one process from its start to its end."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{said.decode()}")
    written = sum(path.stat().st_size for path in out.rglob("*.parquet") if path.is_file())
    return {
        "seconds": seconds,
        "cpu": used.ru_utime + used.ru_stime,
        "rows_s": rows / seconds,
        "mb_s": size / 1e6 / seconds,
        "peak_mb": used.ru_maxrss / 1024,
        "out_mb": written / 1e6,
    }


def _work(way: str, raw: Path, out: Path, scale: float) -> None:
    """One way of a write-up, in a process of its own."""
    if way == "copy":
        _copy(raw, out / "copy.parquet")
    elif way == "list":
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(raw), split="train")
        held = [_row(row, scale, thumbnail=False) for row in rows]
        assert len(held) == len(rows)
    else:
        from datasets import load_dataset

        rows = load_dataset("parquet", data_files=str(raw), split="train")
        thumbnail = way == "map-thumbnail"
        rows.map(lambda row: _row(row, scale, thumbnail), remove_columns=["texts"]).to_parquet(out / "map.parquet")


def _copy(raw: Path, out: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(raw) as file, pq.ParquetWriter(out, file.schema_arrow) as writer:
        for batch in file.iter_batches(100):
            writer.write_batch(batch)


def _row(row: dict[str, Any], scale: float, thumbnail: bool) -> dict[str, Any]:
    """A row as the write-ups convert it: RGB, alpha on white, scaled; one question and answer."""
    from PIL import Image

    picture = row["images"][0]
    if picture.mode in ("RGBA", "LA", "P"):
        layer = picture.convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer.getchannel("A"))
        picture = white
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    size = (int(picture.width * scale), int(picture.height * scale))
    if thumbnail:
        picture.thumbnail(size)
    elif scale != 1:
        picture = picture.resize(size)
    pair = row["texts"][0]
    question = [{"type": "image", "text": None}, {"type": "text", "text": pair["user"]}]
    answer = [{"type": "text", "text": pair["assistant"]}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"images": [picture], "messages": messages}


def _table(name: str, figures: dict[str, list[dict[str, float]]]) -> str:
    """Medians, and the time of each way as a multiple of ours, pair by pair."""
    lines = [f"\n{name}", f"{'':<14}{'s':>8}{'CPU s':>8}{'rows/s':>9}{'MB/s':>8}{'peak MB':>9}{'out MB':>8}{'time':>9}"]
    ours = [run["seconds"] for run in figures["vlmdata"]] if "vlmdata" in figures else None
    for way, runs in figures.items():
        middle = {figure: statistics.median(run[figure] for run in runs) for figure in FIGURES}
        ratio = ""
        if ours:
            pairs = [run["seconds"] / own for run, own in zip(runs, ours, strict=True)]
            ratio = f"{statistics.median(pairs):.2f}x"
        lines.append(
            f"{way:<14}{middle['seconds']:>8.2f}{middle['cpu']:>8.2f}{middle['rows_s']:>9,.0f}{middle['mb_s']:>8.1f}"
            f"{middle['peak_mb']:>9,.0f}{middle['out_mb']:>8.1f}{ratio:>9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
