"""Weights are known again by their contents, and read once for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vlmtrain.caches import content_hash
from vlmtrain.caches.content_hash import files_digest, folder_of, model_files


def test_a_file_is_read_once_and_seen_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = content_hash.sha256_file
    monkeypatch.setattr(content_hash, "sha256_file", lambda path: (read.append(path.name), plain(path))[1])
    model, memory = tmp_path / "model", tmp_path / "memory"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"a" * 1000)
    (model / "config.json").write_text("{}")
    assert [file.name for file in model_files(folder_of(str(model)))] == ["model.safetensors", "config.json"]
    first = files_digest(model_files(model), memory)
    assert files_digest(model_files(model), memory) == first and len(read) == 4, "changed a moment ago"
    monkeypatch.setattr(content_hash, "_TICK_NS", 0)
    time.sleep(0.02)
    for _ in range(3):
        assert files_digest(model_files(model), memory) == first
    assert len(read) == 6
    times = (model / "model.safetensors").stat()
    time.sleep(0.02)
    (model / "model.safetensors").write_bytes(b"a" * 500 + b"b" + b"a" * 499)
    os.utime(model / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert files_digest(model_files(model), memory) != first and len(read) == 7, "of the same size and time"
    for file in memory.iterdir():
        file.write_text('{"seen": 1}')
    files_digest(model_files(model), memory)
    assert len(read) == 9, "a note that says nothing"


def test_the_hubs_own_names_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "sha256_file", lambda path: pytest.fail(f"{path} is read"))
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    found = []
    for name in ("a" * 64, "b" * 64):
        (tmp_path / "blobs" / name).touch()
        link = tmp_path / "snapshot" / "model.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / "blobs" / name)
        found.append(files_digest(model_files(tmp_path / "snapshot"), tmp_path))
    assert found[0] != found[1]
