from __future__ import annotations

import sys
from pathlib import Path

import amber_world
import pytest

# tiny_models.py stands beside the packages' test folders.
sys.path.insert(0, str(Path(__file__).parents[1]))


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
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tiny_models
    import torch

    # Models this small only lose by sharing their work among threads.
    torch.set_num_threads(1)
    return tiny_models.make("llava", tmp_path_factory.mktemp("models") / "llava", head_gain=20.0)
