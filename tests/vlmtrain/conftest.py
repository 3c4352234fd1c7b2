from __future__ import annotations

import sys
from pathlib import Path

import pytest

# tiny_models.py stands beside the packages' test folders.
sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models  # noqa: E402

from vlmtrain import family as families  # noqa: E402


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of every family, its head scaled so that LoRA can bring the loss down."""
    root = tmp_path_factory.mktemp("bases")
    return {name: tiny_models.make(name, root / name, head_gain=20.0) for name in families.names()}


@pytest.fixture(scope="session")
def base(bases: dict[str, Path]) -> Path:
    return bases["llava"]
