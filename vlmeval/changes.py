"""What changed between two runs on the same items: by group, by facet, in what was read, in how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from vlmeval.measure import Sheet, value, values
from vlmeval.task import Metric, Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from vlmeval.metrics.intervals import Array

__all__ = ["SMALL", "by_facet", "by_group", "correctness", "figure", "primary", "probabilities", "reading", "tests"]

SMALL = 10
"""Images below which a cell of a breakdown is marked small: its interval says little."""
FACET_RESAMPLES = 2_000
"""The values of a facet are many and their cells small: what limits their intervals is not the number of resamples."""
MOVED = 0.1
"""How much a margin between probabilities must change to be counted as moved."""
_LISTED = 50

Row = Mapping[str, Any]
Both = Sequence[tuple[Row, Row]]
Drawn = Mapping[str, Mapping[str, "Array"]]
Verdicts: TypeAlias = "npt.NDArray[np.int64]"


def figure(
    metric: Metric,
    sums: tuple[Mapping[str, float], Mapping[str, float]],
    drawn: tuple[Mapping[str, Array], Mapping[str, Array]] | None,
    images: int,
) -> dict[str, Any] | None:
    """One metric of two runs: values, difference, interval, what such a comparison can see.

    Args:
        metric: what is compared.
        sums: summed counters of both.
        drawn: resampled sums of both, drawn alike; None gives no interval.
        images: how many were drawn from.

    Returns:
        See ``Pair.differences``; None where the metric is undefined for one of the runs.

    Raises:
        KeyError: a run's scores have no counter that the metric needs.
    """
    from vlmeval.metrics import intervals, power

    before, after = (value(metric, side) for side in sums)
    if before is None or after is None:
        return None
    span = error = p = None
    if drawn is not None and images > 1:
        resamples = values(metric, drawn[1]) - values(metric, drawn[0])
        span = intervals.interval(resamples, images)
        error, p = intervals.standard_error(resamples), intervals.two_sided(resamples, images)
    difference = after - before
    return {
        "metric": metric.name,
        "label": metric.label,
        "before": before,
        "after": after,
        "difference": difference,
        "interval": list(span) if span else None,
        "se": error,
        "p": p if span else None,
        "images": images,
        "mdd": power.detectable(error) if error else None,
        "images_needed": power.needed(images, difference, error) if error else None,
        "verdict": _verdict(difference, span, metric.better),
    }


def _verdict(difference: float, span: tuple[float, float] | None, better: str | None) -> str:
    if span is None:
        return "unknown"
    if span[0] <= 0 <= span[1]:
        return "inside noise"
    if better is None:
        return "changed"
    return "better" if (difference > 0) == (better == "high") else "worse"


def by_group(
    task: Task, sheets: tuple[Sheet, Sheet], drawn: tuple[Drawn, Drawn], notes: list[str]
) -> list[dict[str, Any]]:
    """The difference of every metric in every group, see ``Pair.differences``.

    Args:
        task: whose metrics are taken.
        sheets: both runs' answers by column.
        drawn: both runs' resampled sums, drawn alike.
        notes: gets a line for each metric that a run's scores lack the counters of.
    """
    asked = sheets[0].groups
    # Where no headline group was asked, the first group's figures are the headline.
    headline = {place for place in task.headline if place[0] in asked}
    headline = headline or {(group, metric.name) for group in list(asked)[:1] for metric in task.metrics}
    result = []
    for group in sheets[0].groups:
        sums = (sheets[0].totals(group), sheets[1].totals(group))
        resampled = (drawn[0][group], drawn[1][group]) if all(group in side for side in drawn) else None
        images = sheets[0].spread(group)
        for metric in (metric for metric in task.metrics if group in metric.groups):
            try:
                found = figure(metric, sums, resampled, images)
            except KeyError as error:
                said = f"{metric.label} is not compared: scores of another version have no counter {error}"
                if said not in notes:
                    notes.append(said)
                continue
            if found is not None:
                n = int(sheets[0].groups[group].sum())
                result.append({"group": group, **found, "n": n, "headline": (group, metric.name) in headline})
    return result


def correctness(both: Both) -> tuple[Verdicts, Verdicts]:
    """Right (1), wrong (0) or neither (-1) of the first and the second run, ``[N]`` each."""
    import numpy as np

    def marks(side: int) -> Verdicts:
        given = (-1 if rows[side]["correct"] is None else int(rows[side]["correct"]) for rows in both)
        return np.fromiter(given, dtype=np.int64, count=len(both))

    return marks(0), marks(1)


def tests(table: Sheet, marks: tuple[Verdicts, Verdicts]) -> dict[str, dict[str, Any]]:
    """Paired tests of right and wrong answers by group, see ``Pair.mcnemar``.

    Args:
        table: the answers of one run by column, for their groups and images.
        marks: see ``correctness``, in the same order.
    """
    judged = (marks[0] >= 0) & (marks[1] >= 0)
    members = {group: judged & member for group, member in table.groups.items()}
    found: dict[str, dict[str, Any]] = {}
    for group, member in members.items():
        # A group of texts and questions repeats the test of a group of its questions alone.
        repeated = (table.groups[group] & ~judged).any() and any((members[one] == member).all() for one in found)
        if member.any() and not repeated:
            found[group] = _test(marks[0][member], marks[1][member], table.cluster[member])
    return found


def _test(before: Verdicts, after: Verdicts, cluster: Verdicts) -> dict[str, Any]:
    import numpy as np

    from vlmeval.metrics.pair_tests import mcnemar, mcnemar_mid, sign_flip

    change = after - before
    lost, won = int((change < 0).sum()), int((change > 0).sum())
    flipped = change != 0
    _, image = np.unique(cluster[flipped], return_inverse=True)
    net = np.rint(np.bincount(image, change[flipped])).astype(np.int64)
    return {
        "n": len(change),
        "right_to_wrong": lost,
        "wrong_to_right": won,
        "p": mcnemar(lost, won),
        "mid_p": mcnemar_mid(lost, won),
        "images": len(net),
        "clustered_p": sign_flip(net),
    }


def primary(task: Task, group: str) -> Metric | None:
    """The metric that stands for a group: the first of its headline, else its first."""
    own = [metric for metric in task.metrics if group in metric.groups]
    named = [metric for of, name in task.headline for metric in own if of == group and metric.name == name]
    return next(iter([*named, *own]), None)


def by_facet(
    task: Task,
    both: Both,
    groups: Sequence[Sequence[str]],
    sheets: tuple[Sheet, Sheet],
    marks: tuple[Verdicts, Verdicts],
) -> list[dict[str, Any]]:
    """Differences for every value of every facet, see ``Pair.by_facet``.

    Args:
        task: whose metrics are taken.
        both: rows of the same items.
        groups: the groups of each item, the widest first.
        sheets: both runs' answers by column, in the same order.
        marks: see ``correctness``, in the same order.
    """
    cells: dict[tuple[str, str, str], list[int]] = {}
    for number, ((a, _), member) in enumerate(zip(both, groups, strict=True)):
        for name, facet in a.get("facets", {}).items() if member else ():
            cells.setdefault((member[0], name, str(facet)), []).append(number)
    result: list[dict[str, Any]] = []
    for (group, name, facet), members in cells.items():
        place = {"facet": name, "value": facet, "group": group}
        result += [{**place, **entry} for entry in _cell(task, group, members, sheets, marks)]
    _correct(result)
    order = {(group, metric.name): metric is primary(task, group) for metric in task.metrics for group in metric.groups}
    return sorted(result, key=lambda d: (not order[d["group"], d["metric"]], -abs(d["difference"])))


def _cell(
    task: Task, group: str, index: Sequence[int], sheets: tuple[Sheet, Sheet], marks: tuple[Verdicts, Verdicts]
) -> list[dict[str, Any]]:
    """The figures of one cell; its own images are drawn."""
    import numpy as np

    rows = np.asarray(index)
    _, image = np.unique(sheets[0].cluster[rows], return_inverse=True)
    images = int(image.max()) + 1
    columns = [(side, name) for side in (0, 1) for name in sheets[side].counters[group]]
    table = np.zeros((images, len(columns)))
    for number, (side, name) in enumerate(columns):
        table[:, number] = np.bincount(image, sheets[side].counts[name][rows], images)
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    drawn: tuple[dict[str, Array], dict[str, Array]] = ({}, {})
    resamples = _drawn(table) if images > 1 else None
    for number, (side, name) in enumerate(columns):
        sums[side][name] = float(table[:, number].sum())
        if resamples is not None:
            drawn[side][name] = resamples[number]
    before, after = (side[rows] for side in marks)
    judged = (before >= 0) & (after >= 0)
    test = _test(before[judged], after[judged], image[judged]) if judged.any() else {}
    kept = {key: test.get(key) for key in ("right_to_wrong", "wrong_to_right", "clustered_p")}
    result = []
    for metric in (metric for metric in task.metrics if group in metric.groups):
        try:
            found = figure(metric, sums, drawn if resamples is not None else None, images)
        except KeyError:
            # Said once for the whole group.
            continue
        if found is not None:
            result.append({**found, "n": len(rows), "small": images < SMALL, **kept})
    return result


def _drawn(table: Array) -> Array:
    """Resampled sums ``[K, R]`` of a small table ``[C, K]``."""
    from vlmeval.metrics.intervals import bootstrap

    return bootstrap(table, resamples=FACET_RESAMPLES).T.copy()


def _correct(entries: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over all values of a facet, metric by metric."""
    from vlmeval.metrics.pair_tests import holm

    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        families.setdefault((entry["facet"], entry["group"], entry["metric"]), []).append(entry)
    for family in families.values():
        for key in ("p", "clustered_p"):
            for entry, corrected in zip(family, holm([entry[key] for entry in family]), strict=True):
                entry[f"{key}_holm"] = corrected


def reading(judged: Both) -> dict[str, Any] | None:
    """Answers that became readable or unreadable; None where nothing is read from answers.

    Args:
        judged: rows of the same items, of answers that are right or wrong.
    """
    if not any(row.get("answer") is not None for rows in judged for row in rows):
        return None
    kinds: dict[tuple[bool, bool], list[int | str]] = {}
    for a, b in judged:
        kinds.setdefault((a.get("answer") is None, b.get("answer") is None), []).append(a["id"])
    return {
        "n": len(judged),
        "unread_to_read": kinds.get((True, False), []),
        "read_to_unread": kinds.get((False, True), []),
        "unread_in_both": kinds.get((True, True), []),
    }


def probabilities(both: Both, clusters: Sequence[str]) -> dict[str, Any] | None:
    """How the probability of the truth changed, where both runs' scores have ``detail["probabilities"]``.

    Probabilities are taken as shares of the choices' sum. The margin is the truth's share less the largest other one.

    Args:
        both: rows of the same items.
        clusters: the image of each item.

    Returns:
        ``n``; ``before`` and ``after``, means of P(truth); ``difference``, its 95 % ``interval`` over images and
        ``se``; ``margin_difference``, the mean; ``moved``, how many answers that stayed the same moved their margin by
        0.1 or more; ``largest``, the 50 of them that moved most: ``id``, ``correct``, margins ``before`` and ``after``.
    """
    import numpy as np

    from vlmeval.metrics.intervals import bootstrap, cluster_sums, interval, standard_error

    found = [
        (a, b, image, one, other)
        for (a, b), image in zip(both, clusters, strict=True)
        if _choices(a) is not None and _choices(a) == _choices(b)
        if (one := _truth(a)) is not None and (other := _truth(b)) is not None
    ]
    if not found:
        return None
    share = [other[0] - one[0] for *_, one, other in found]
    margin = [other[1] - one[1] for *_, one, other in found]
    counts = cluster_sums([image for _, _, image, _, _ in found], {"change": share, "n": [1.0] * len(found)})
    images = len(counts["n"])
    drawn = bootstrap(np.stack([counts["change"], counts["n"]], axis=1)) if images > 1 else None
    means = drawn[:, 0] / drawn[:, 1] if drawn is not None else None
    span = interval(means, images) if means is not None else None
    stayed = [
        {"id": a["id"], "correct": a["correct"], "before": one[1], "after": other[1]}
        for a, b, _, one, other in found
        if a["correct"] == b["correct"] and abs(other[1] - one[1]) >= MOVED
    ]
    stayed.sort(key=lambda entry: -abs(entry["after"] - entry["before"]))
    return {
        "n": len(found),
        "before": sum(one[0] for *_, one, _ in found) / len(found),
        "after": sum(other[0] for *_, other in found) / len(found),
        "difference": sum(share) / len(found),
        "interval": list(span) if span else None,
        "se": standard_error(means) if means is not None else None,
        "margin_difference": sum(margin) / len(found),
        "moved": len(stayed),
        "largest": stayed[:_LISTED],
    }


def _choices(row: Row) -> frozenset[str] | None:
    """Between what the probabilities of a row are; two rows of the likeliest few of many cannot be compared."""
    rated = row.get("detail", {}).get("probabilities")
    return frozenset(rated) if isinstance(rated, Mapping) else None


def _truth(row: Row) -> tuple[float, float] | None:
    """(share of the truth, its margin over the likeliest other choice); None where a row does not tell."""
    rated, target = row["detail"]["probabilities"], row.get("target")
    if not isinstance(target, str):
        return None
    named = {str(name).lower(): p for name, p in rated.items() if isinstance(p, int | float) and math.isfinite(p)}
    total, right = sum(named.values()), named.pop(target.lower(), None)
    if right is None or not named or total <= 0:
        return None
    return right / total, (right - max(named.values())) / total
