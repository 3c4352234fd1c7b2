"""The file of what a reference said: many write, one is killed, what is read is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from vlmtrain.caches import reference_cache
from vlmtrain.caches.reference_cache import Journal

APPENDS = """
import sys
from pathlib import Path
from vlmtrain.caches.reference_cache import Journal

file, name = Journal(Path(sys.argv[1])), sys.argv[2]
for number in range(600 if name != "killed" else 10**9):
    file.append({f"{name} {number}": (number / 3, -number / 7), f"{name} {number} more": (number / 3,) * 20})
"""


def test_two_write_and_one_is_killed(tmp_path: Path) -> None:
    """Real processes: every line that was finished is there, none is mixed with another's."""
    file = tmp_path / "logps.jsonl"
    start = [sys.executable, "-c", APPENDS, str(file)]
    one, two, killed = (subprocess.Popen([*start, name]) for name in ("one", "two", "killed"))
    until = time.monotonic() + 60
    while not (file.is_file() and file.read_bytes().count(b'"killed') > 50):
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert [process.wait(60) for process in (one, two, killed)] == [0, 0, -9]
    found, _ = Journal(file).read()
    for name in ("one", "two"):
        assert all(found[f"{name} {number}"] == (number / 3, -number / 7) for number in range(600))
    known = [key for key in found if key.startswith("killed")]
    assert len(known) > 50 and all(found[key][0] == int(key.split()[1]) / 3 for key in known)


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    said: list[str] = []
    shared = reference_cache.Shared(tmp_path, {"a": 1}, said.append)
    shared.add({"x": (1 / 3, -1e-310), "y": (float("nan"), 0.0), "z": (float("-inf"), 0.0)})
    assert shared.find(["x", "y", "z"]) == {"x": (1 / 3, -1e-310)} and not said


def test_what_was_not_used_for_longest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [reference_cache.Shared(tmp_path, {"number": number}, print) for number in range(4)]
    for age, store in enumerate(stores):
        store.find([])
        store.add({f"{number}": (0.5, 0.5) for number in range(100)})
        os.utime(store.folder, (1000 + age, 1000 + age))
    size = sum(file.stat().st_size for file in stores[0].folder.iterdir())
    monkeypatch.setattr(reference_cache, "_LIMIT", 2.5 * size)
    # The first is used again, the second is the oldest then.
    stores[0].find([])
    assert [store.folder.is_dir() for store in stores] == [True, False, False, True]
    assert stores[0].find(["5"]) == {"5": (0.5, 0.5)} and stores[1].find(["5"]) == {}


def test_of_a_large_file_only_what_is_asked_for_is_kept(tmp_path: Path) -> None:
    """Whether or not lines are damaged, which are taken out as ever."""
    said: list[str] = []
    shared = reference_cache.Shared(tmp_path, {"a": 1}, said.append)
    for batch in range(200):
        shared.add({f"{batch} {row}": (batch + row / 3, -row / 7) for row in range(300)})
    shared.add({"7 7": (0.0, 0.0), "last": (0.5, 0.5)})
    file, asked = shared.journal.path, ["7 7", "nobody", "199 299", "last", "3 4"]
    expected = {"7 7": (7 + 7 / 3, -1.0), "199 299": (199 + 299 / 3, -299 / 7), "last": (0.5, 0.5)}
    expected["3 4"] = (3 + 4 / 3, -4 / 7)
    whole = file.read_bytes()
    assert len(whole) > 2_000_000
    tracemalloc.start()
    try:
        assert list(shared.find(iter(asked)).items()) == list(expected.items()) and not said
        # A line is torn in the middle, another was never finished.
        file.write_bytes(whole[:1000] + b"\n" + whole[1001:-5])
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = shared.find(asked)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert list(found.items()) == [(key, one) for key, one in expected.items() if key != "last"]
    assert said == ["reference lines that are damaged: 3; their rows are computed again"]
    assert peak < 500_000, "lines of a batch, not the file"
    assert shared.find(asked) == found and len(said) == 1
    # Of the first batch nothing is left, of the others all.
    assert len(shared.journal.read()[0]) == 199 * 300
