"""A report as other programs read it: JUnit XML for build servers, tidy CSV for tables and plots."""

from __future__ import annotations

import csv as tables
import io
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from vlmdata.terminal import harmless
from vlmeval import gates
from vlmeval.gates import Limit
from vlmeval.task import Metric, Task, recorded
from vlmeval.view import cell, figure, headline

__all__ = ["csv", "junit"]

_COLUMNS = ("task", "group", "metric", "value", "low", "high", "n", "official")


def junit(
    report: Mapping[str, Any], under: Sequence[Limit] = (), over: Sequence[Limit] = (), *, task: Task | None = None
) -> str:
    """JUnit XML: a test case for every limit and for every headline figure.

    A limit that is not kept is a failure, and so is every headline figure of a partial report: a build that asked for
    the whole set did not get it. A headline figure without a value is skipped.

    Args:
        report: the content of ``report.json``.
        under: limits that figures may not be under.
        over: limits that figures may not be over.
        task: whose report it is; None takes the one the report names.
    """
    task = task or recorded(report)
    suite = ElementTree.Element("testsuite", {"name": f"vlmeval.{task.name}"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("version", report.get("version", "")), ("headline", report["headline"] or "complete")):
        ElementTree.SubElement(properties, "property", {"name": name, "value": harmless(str(value))})
    for gate in gates.gates(report, under, over, task=task):
        sign = ">=" if gate.side == "under" else "<="
        case = _case(suite, task, "limits", f"{gate.group}.{gate.limit.metric} {sign} {gate.bound:g}")
        if gate.reason:
            ElementTree.SubElement(case, "failure", {"message": harmless(gate.reason), "type": "limit"})
    for group, metric in headline(task, report):
        entry = cell(report, group, metric)
        case = _case(suite, task, "headline", f"{group}.{metric.name}")
        if not report["coverage"]["complete"]:
            ElementTree.SubElement(case, "failure", {"message": harmless(report["headline"]), "type": "partial"})
        elif entry.value is None:
            ElementTree.SubElement(case, "skipped", {"message": "no value"})
        out = ElementTree.SubElement(case, "system-out")
        out.text = f"{metric.label} {entry.text}" + (f" ({entry.span})" if entry.span else "")
    for name, count in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
        suite.set(name, str(len(suite.findall(count))))
    suite.set("errors", "0")
    suite.set("time", str(report.get("speed", {}).get("seconds", 0)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, task: Task, kind: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"classname": f"vlmeval.{task.name}.{kind}", "name": name})


def csv(report: Mapping[str, Any], *, task: Task | None = None) -> str:
    """Tidy CSV, one row for each figure: the unrounded value, its 95 % interval, n, and the official value.

    Cells without a value are empty. Percentages are in percent, as in ``report.json``. ``task`` None takes the one the
    report names.
    """
    task = task or recorded(report)
    out = io.StringIO(newline="")
    writer = tables.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for group in report["counts"]:
        for metric in _of(task, group):
            found = figure(report, group, metric)
            if found is not None:
                low, high = found["interval"] or ("", "")
                official = report.get("official", {}).get(group, {}).get(metric.name, "")
                value = "" if found["value"] is None else found["value"]
                writer.writerow([task.name, group, metric.name, value, low, high, found["n"], official])
    return out.getvalue()


def _of(task: Task, group: str) -> list[Metric]:
    return [metric for metric in task.metrics if group in metric.groups]
