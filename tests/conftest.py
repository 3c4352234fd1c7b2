"""What holds for the tests of all packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser


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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name to a tiny random model of it, its head scaled so that LoRA can bring the loss down."""
    root, made = tmp_path_factory.mktemp("bases"), set()

    def folder(name: str) -> Path:
        # Not before it is asked for: torch is no business of vlmdata's tests.
        import tiny_models

        if name not in made:
            tiny_models.make(name, root / name, head_gain=20.0)
            made.add(name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llava")


@pytest.fixture
def store() -> Iterator[Any]:
    """An object store in memory, empty before and after."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs.clear()
    yield memory
    memory.store.clear()
    memory.pseudo_dirs.clear()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def nothing_is_complained_of(browser: Browser) -> Iterator[None]:
    browser.errors.clear()
    browser.requests.clear()
    yield
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
