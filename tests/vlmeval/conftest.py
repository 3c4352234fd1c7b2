from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import amber_world
import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return amber_world.write(tmp_path_factory.mktemp("world") / "amber")


@pytest.fixture(scope="session")
def real() -> Path:
    """The official AMBER files, where they are at hand."""
    if not (amber_world.REAL / "annotations.json").is_file():
        pytest.skip(f"the official AMBER files are not at {amber_world.REAL} (VLM_REAL_DATA names another place)")
    return amber_world.REAL


@pytest.fixture(scope="session")
def tiny(model_folder: Callable[[str], Path]) -> Path:
    import torch

    # Models this small only lose by sharing their work among threads.
    torch.set_num_threads(1)
    return model_folder("llava")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that the questions of ``local_items`` are about."""
    from local_items import write_pictures

    return write_pictures(tmp_path_factory.mktemp("pictures"))
