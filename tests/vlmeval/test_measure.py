from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmeval import measure
from vlmeval.metrics.intervals import interval, wilson
from vlmeval.metrics.sums import total
from vlmeval.task import Metric, Task, ratio

GROUPS = {"all": "All", "odd": "Odd", "even": "Even"}


def task(*metrics: Metric) -> Task:
    return Task("numbers", "Numbers.", lambda *_: None, metrics, (), GROUPS)  # type: ignore[arg-type,return-value]


def share(sums: Any) -> Any:
    return 100 * ratio(sums["right"], sums["asked"])


ACCURACY = Metric("accuracy", "Accuracy", tuple(GROUPS), share, "asked", proportion=("right", "asked"))
ROW = st.fixed_dictionaries(
    {
        "groups": st.lists(st.sampled_from([*GROUPS, "unheard of"]), unique=True, max_size=3),
        "cluster": st.sampled_from("abcde"),
        "counts": st.dictionaries(st.sampled_from(["right", "asked", "words"]), st.integers(0, 9), max_size=3),
    }
)


@settings(max_examples=80, deadline=None)
@given(st.lists(ROW, max_size=25))
def test_a_sheet_adds_up_as_a_loop_does(rows: list[dict[str, Any]]) -> None:
    clusters = list("abcdef")
    found = measure.sheet(task(), rows, clusters)
    assert list(found.groups) == measure.groups_of(task(), rows)
    expected = {
        (group, cluster): total(row["counts"] for row in rows if group in row["groups"] and row["cluster"] == cluster)
        for group in GROUPS
        for cluster in clusters
    }
    names, table = found.by_cluster()
    for column, (group, name) in enumerate(names):
        assert table[:, column].tolist() == [expected[group, cluster].get(name, 0) for cluster in clusters]
    for group in GROUPS:
        members = [row for row in rows if group in row["groups"]]
        assert found.totals(group) == total(row["counts"] for row in members)
        assert found.spread(group) == len({row["cluster"] for row in members})


def rows(right: list[int], asked: int, group: str = "all") -> list[dict[str, Any]]:
    """An image for each number of right answers of so many questions."""
    return [
        {"groups": [group], "cluster": str(image), "counts": {"right": int(number < count), "asked": 1}}
        for image, count in enumerate(right)
        for number in range(asked)
    ]


def test_an_interval_of_what_never_varied_counts_images() -> None:
    """All right on 50 images with 10 questions each: as sure as 50 answers make it, not as 500."""
    found = measure.columns(task(ACCURACY), rows([10] * 50, 10), ["all"])["exact"]["all"]["accuracy"]
    edge = wilson(50, 50)
    assert edge is not None
    assert (found["value"], found["n"]) == (100.0, 500) and found["interval"] == pytest.approx([100 * e for e in edge])


def test_independent_trials_have_wilsons_interval() -> None:
    metric = Metric("hal", "Hal", ("all",), share, "asked", "low", True, ("right", "asked"), independent=True)
    found = measure.columns(task(metric), rows([1] * 15 + [0] * 133, 1), ["all"])["exact"]["all"]["hal"]
    assert found["interval"] == pytest.approx([6.24, 16.05], abs=0.01)


def test_an_interval_is_over_the_images_of_its_group() -> None:
    """Twelve images have questions of the group, five hundred do not: few images make it wide."""
    both = [*rows([3, 5, 2, 4] * 3, 5, "odd"), *rows([0] * 12 + [4] * 500, 5, "even")[60:]]
    found = measure.columns(task(ACCURACY), both, list(GROUPS))
    assert found["clusters"] == 512 and found["n"] == {"all": 0, "odd": 60, "even": 2500}
    clusters = list(dict.fromkeys(row["cluster"] for row in both))
    drawn = measure.resampled(task(ACCURACY), both, clusters)["odd"]
    assert found["exact"]["odd"]["accuracy"]["interval"] == pytest.approx(interval(share(drawn), 12))
    assert found["exact"]["all"]["accuracy"] == {"value": None, "n": 0, "interval": None}


def test_a_metric_that_divides_by_nothing_is_undefined() -> None:
    """A task of one's own may not know ``ratio``: no traceback, no warning, and no interval of infinities."""
    bare = Metric("bare", "Bare", ("all",), lambda sums: sums["right"] / sums["wrong"], "asked")
    some = rows([1, 0, 1, 1], 1)
    for row in some:
        row["counts"]["wrong"] = 1 - row["counts"]["right"]
    found = measure.columns(task(bare), some, ["all"])["exact"]["all"]["bare"]
    # A third of the resamples draws no wrong answer.
    assert found == {"value": 3.0, "n": 4, "interval": None}
    for row in some:
        row["counts"]["wrong"] = 0
    assert measure.columns(task(bare), some, ["all"])["exact"]["all"]["bare"]["value"] is None


def test_the_same_clusters_are_drawn_alike() -> None:
    one, other = rows([1, 2, 3, 4], 4), rows([2, 3, 4, 5], 5)
    clusters = [str(number) for number in range(4)]
    drawn = [measure.resampled(task(ACCURACY), side, clusters, resamples=500)["all"] for side in (one, other)]
    np.testing.assert_array_equal(drawn[1]["right"], drawn[0]["right"] + 4)
