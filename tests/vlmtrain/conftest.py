from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# tiny_models.py stands beside the packages' test folders.
sys.path.insert(0, str(Path(__file__).parents[1]))

import matrix  # noqa: E402
import tiny_models  # noqa: E402

from vlmtrain import family as families  # noqa: E402
from vlmtrain.model import Loaded, load  # noqa: E402

# Those that every training test goes through; the matrix goes through all.
FEW = ("idefics3", "llava", "qwen2_vl")
OUTCOMES: dict[tuple[str, str], list[matrix.Outcome]] = {}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name to a tiny random model of it, its head scaled so that LoRA can bring the loss down."""
    root, made = tmp_path_factory.mktemp("bases"), set()

    def folder(name: str) -> Path:
        if name not in made:
            tiny_models.make(name, root / name, head_gain=20.0)
            made.add(name)
        return root / name

    return folder


@pytest.fixture(scope="session")
def bases(model_folder: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny models of a few families that differ in everything."""
    return {name: model_folder(name) for name in FEW}


@pytest.fixture(scope="session")
def base(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llava")


@pytest.fixture(scope="session")
def loaded_of(model_folder: Callable[[str], Path]) -> Callable[[str], Loaded]:
    """A family's name to its tiny model, loaded once; nobody may change it."""
    known: dict[str, Loaded] = {}

    def find(name: str) -> Loaded:
        if name not in known:
            known[name] = load(str(model_folder(name)), device="cpu")
        return known[name]

    return find


@pytest.fixture(scope="module", params=[n for n in families.names() if families.load(n).task == "text"])
def loaded(request: pytest.FixtureRequest, loaded_of: Callable[[str], Loaded]) -> Loaded:
    """The tiny model of every family that answers in words."""
    return loaded_of(request.param)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    matrix.record(OUTCOMES, report)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not OUTCOMES:
        return
    terminalreporter.section("families")
    terminalreporter.write_line(matrix.table(OUTCOMES))
    if file := os.environ.get("VLMTRAIN_MATRIX"):
        Path(file).write_text(matrix.table(OUTCOMES, markdown=True) + "\n", encoding="utf-8")
