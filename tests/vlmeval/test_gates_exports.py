"""Limits that fail a build, JUnit XML and CSV: on real reports of the small AMBER world."""

from __future__ import annotations

import csv as tables
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import amber_world
import pytest

from vlmdata.errors import ConfigError
from vlmeval.exports import csv, junit
from vlmeval.gates import check, failed, gates, parse
from vlmeval.run import evaluate
from vlmeval.task import load

TASK = load("amber")


@pytest.fixture(scope="module")
def report(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    answers = {**amber_world.truthful(), 5: "No", 29: "Yes", 30: "Yes"}
    path = amber_world.respond(tmp_path_factory.mktemp("gates") / "r.json", answers)
    return evaluate("amber", data=world, responses=path)


@pytest.fixture(scope="module")
def partial(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = amber_world.respond(tmp_path_factory.mktemp("partial") / "r.json", {5: "Yes", 6: "Yes"})
    return evaluate("amber", data=world, responses=path, part="discriminative")


def kept(report: dict[str, Any], limit: str, *, over: bool = False) -> bool:
    limits = parse([limit])
    check(TASK, limits)
    return not failed(report, [] if over else limits, limits if over else [])


def test_a_limit_is_held_against_what_the_report_shows(report: dict[str, Any]) -> None:
    accuracy = report["official"]["discriminative"]["accuracy"]
    assert kept(report, f"accuracy={accuracy}") and kept(report, f"accuracy={accuracy / 100:.4f}")
    assert not kept(report, f"accuracy={accuracy + 0.1}") and not kept(report, "accuracy=1")
    assert kept(report, f"accuracy={accuracy}", over=True) and not kept(report, f"accuracy={accuracy - 0.1}", over=True)
    existence = report["official"]["existence"]["f1"]
    assert existence != report["official"]["discriminative"]["f1"]
    assert kept(report, f"existence.f1={existence}") and not kept(report, f"existence.f1={existence + 0.1}")
    assert kept(report, "chair=0", over=True)
    # Words are no percentage: 1 is one word.
    assert kept(report, "words=1") and not kept(report, "words=1", over=True)


def test_a_failure_says_figure_and_limit(report: dict[str, Any]) -> None:
    (failure,) = failed(report, parse(["state.accuracy=0.999"]))
    value = report["official"]["state"]["accuracy"]
    assert failure.reason == f"state.accuracy is {value}, at least 99.9 was asked for"
    assert failure.value == value and failure.bound == 99.9 and failure.group == "state"
    near = {**report, "official": {}, "exact": {"discriminative": {"f1": {"value": 89.96, "n": 1, "interval": None}}}}
    assert failed(near, parse(["f1=90"]))[0].reason == "discriminative.f1 is 89.96, at least 90 was asked for"


def test_a_partial_report_keeps_no_limit(partial: dict[str, Any]) -> None:
    assert not kept(partial, "accuracy=0.1") and not kept(partial, "accuracy=100", over=True)
    assert "PARTIAL 2/" in failed(partial, parse(["accuracy=0.1"]))[0].reason


def test_a_figure_that_is_not_there_keeps_no_limit(report: dict[str, Any]) -> None:
    without = {**report, "counts": {"discriminative": report["counts"]["discriminative"]}}
    assert failed(without, (), parse(["chair=50"]))[0].reason.startswith("generative.chair has no value")


@pytest.mark.parametrize("text", ["f1", "f1=", "=0.9", "f1=high", "f1=nan", "f1=inf", "", "f1>0.9", ".=1"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not understood: expected METRIC=NUMBER"):
        parse([text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f2=0.9", "no metric 'f2'; valid: accuracy, "),
        ("nothing.f1=0.9", "no group 'nothing'; valid: action, attribute, discriminative"),
        ("generative.f1=0.9", "no group 'generative'"),
        ("f1=101", "percent up to 100"),
        ("f1=-0.1", "percent up to 100"),
    ],
)
def test_a_limit_on_nothing_is_refused_before_anything_is_asked(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(TASK, parse([text]))


def cases(text: str) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(text.partition("\n")[2])
    suite = root.find("testsuite")
    assert root.tag == "testsuites" and suite is not None
    found = {f"{case.get('classname')}.{case.get('name')}": case for case in suite.iter("testcase")}
    assert suite.get("tests") == str(len(found))
    assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    return found


def test_junit_has_a_case_for_every_limit_and_headline(report: dict[str, Any]) -> None:
    under, over = parse(["f1=0.5", "accuracy=1"]), parse(["chair=50"])
    text = junit(report, under, over)
    found = cases(text)
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>')
    bad = {name for name, case in found.items() if case.find("failure") is not None}
    assert bad == {"vlmeval.amber.limits.discriminative.accuracy >= 100"}
    assert "vlmeval.amber.limits.generative.chair <= 50" in found
    headline = found["vlmeval.amber.headline.discriminative.accuracy"]
    assert f"Accuracy {report['official']['discriminative']['accuracy']}" in (headline.findtext("system-out") or "")
    assert len(found) == 3 + len(TASK.headline)


def test_junit_of_a_partial_report_fails(partial: dict[str, Any]) -> None:
    found = cases(junit({**partial, "headline": partial["headline"] + ' <&"\x00\x1b\ud800>'}, parse(["f1=0.1"])))
    assert found and all(case.find("failure") is not None for case in found.values())


def test_csv_is_tidy(report: dict[str, Any]) -> None:
    rows = list(tables.DictReader(io.StringIO(csv(report))))
    assert list(rows[0]) == ["task", "group", "metric", "value", "low", "high", "n", "official"]
    figures = [(g, m) for column in ("exact", "rates") for g in report[column] for m in report[column][g]]
    assert sorted((row["group"], row["metric"]) for row in rows) == sorted(figures)
    (row,) = [row for row in rows if (row["group"], row["metric"]) == ("state", "accuracy")]
    exact = report["exact"]["state"]["accuracy"]
    assert float(row["value"]) == exact["value"] and [float(row["low"]), float(row["high"])] == exact["interval"]
    assert float(row["official"]) == report["official"]["state"]["accuracy"] and int(row["n"]) == exact["n"]


def test_gates_come_in_the_order_given(report: dict[str, Any]) -> None:
    found = gates(report, parse(["f1=0.5", "accuracy=0.5"]), parse(["cog=90"]))
    assert [(gate.limit.metric, gate.side, bool(gate.reason)) for gate in found] == [
        ("f1", "under", False), ("accuracy", "under", False), ("cog", "over", False),
    ]  # fmt: skip
