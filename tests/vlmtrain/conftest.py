from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import matrix
import pytest
import tiny_models

from vlmtrain import family as families
from vlmtrain.model import Loaded, load

# Those that every training test goes through; the matrix goes through all.
FEW = ("idefics3", "llava", "qwen2_vl")
OUTCOMES: dict[tuple[str, str], list[matrix.Outcome]] = {}


@pytest.fixture(scope="session")
def bases(model_folder: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny models of a few families that differ in everything."""
    return {name: model_folder(name) for name in FEW}


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for 4 bits."""
    return tiny_models.make("llava", tmp_path_factory.mktemp("wide") / "wide", width=64, head_gain=20.0)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make("vit", tmp_path_factory.mktemp("classifiers") / "vit")


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
