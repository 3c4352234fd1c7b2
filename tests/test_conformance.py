"""One set of checks over every discovered source, family and task: a new file is tested the moment it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vlmdata.source
import vlmeval.task
import vlmtrain.family

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", vlmdata.source.names())
def test_source(name: str) -> None:
    source = vlmdata.source.load(name)
    assert source.kind in ("messages", "preference")
    assert source.columns and all(source.columns)
    assert source.licence and source.url.startswith("https://")
    assert re.fullmatch(r"\S.{10,90}", source.summary)
    assert len(set(source.configs)) == len(source.configs)
    text = (ROOT / "vlmdata" / "sources" / f"{name}.py").read_text()
    assert source.url in text.split('"""')[1], "the docstring does not link the source"
    assert name in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", vlmtrain.family.names())
def test_family(name: str) -> None:
    family = vlmtrain.family.load(name)
    assert family.name == name
    assert family.model_types
    assert name in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", vlmeval.task.names())
def test_task(name: str) -> None:
    task = vlmeval.task.load(name)
    assert task.name == name
    assert name in (ROOT / "README.md").read_text()


def test_no_family_answers_for_the_model_type_of_another() -> None:
    families = [vlmtrain.family.load(name) for name in vlmtrain.family.names()]
    types = [(kind, eyes) for f in families for kind in f.model_types for eyes in f.vision_types or (None,)]
    assert len(types) == len(set(types))
