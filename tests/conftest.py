"""What holds for the tests of all packages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test: none finds what another has left, and none writes into the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VLMTRAIN_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures of wider scope, which are made before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLMTRAIN_CACHE", str(tmp_path_factory.mktemp("caches")))
        yield
