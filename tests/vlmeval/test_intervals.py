from __future__ import annotations

import math

import numpy as np
import pytest

from vlmeval.metrics import intervals
from vlmeval.metrics.labels import accuracy, f1


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table 1: 81/263, 15/148, 0/20, 1/29.
    for case, expected in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        assert intervals.wilson(*case) == pytest.approx(expected, abs=5e-5)
    assert intervals.wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert intervals.wilson(0, 0) is None


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (5, 3), (3, 5), (10, 0), (1887, 1260), (50, 50)])
def test_mcnemar_is_the_binomial_sum(one: int, other: int) -> None:
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1))
    assert intervals.mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-12)


def test_mcnemar_of_large_counts() -> None:
    assert f"{intervals.mcnemar(1887, 1260):.1e}" == "4.3e-29"
    assert f"{intervals.mcnemar(2862, 3388):.1e}" == "3.0e-11"
    assert 0 <= intervals.mcnemar(14000, 10) < 1e-300


def test_bootstrap_draws_whole_clusters() -> None:
    sums = intervals.cluster_sums(["a", "b", "a", "c"], {"x": [1, 2, 3, 4], "y": [1, 1, 1, 1]})
    assert {name: list(values) for name, values in sums.items()} == {"x": [4, 2, 4], "y": [2, 1, 1]}
    drawn = intervals.bootstrap(np.stack([sums["x"], sums["y"]], axis=1), resamples=4000, seed=1)
    assert drawn.shape == (4000, 2)
    # Three clusters are drawn each time: y is 3 plus how often "a" came.
    assert set(np.unique(drawn[:, 1])) == {3.0, 4.0, 5.0, 6.0}
    assert drawn[:, 0].mean() == pytest.approx(10, abs=0.1)


def test_bootstrap_repeats_and_pairs() -> None:
    rng = np.random.default_rng(5)
    x = rng.random((300, 1))
    once, again = (intervals.bootstrap(np.hstack([x, x]), resamples=200, seed=3) for _ in range(2))
    assert (once == again).all() and (once[:, 0] == once[:, 1]).all()
    np.testing.assert_allclose(intervals.bootstrap(x, resamples=200, seed=3), once[:, :1])
    assert (intervals.bootstrap(x, resamples=200, seed=4) != once[:, :1]).any()


def test_bootstrap_interval_has_the_width_of_the_standard_error() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(2000) < 0.8).astype(float)
    drawn = intervals.bootstrap(right[:, None], resamples=4000)[:, 0] / 2000
    found = intervals.interval(drawn)
    assert found is not None
    half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert (found[1] - found[0]) / 2 == pytest.approx(half, rel=0.08)


def test_an_interval_of_mostly_undefined_values_is_none() -> None:
    assert intervals.interval(np.array([1.0, np.nan, np.nan])) is None
    assert intervals.interval(np.ones(40)) == (1.0, 1.0)


def test_labels() -> None:
    predictions, references = [0, 1, 2, 2, 1], [0, 1, 1, 2, 2]
    assert accuracy(predictions, references) == 0.6
    # Per class 1, 1/2, 1/2.
    assert f1(predictions, references) == pytest.approx(2 / 3)
    assert f1(predictions, references, "micro") == pytest.approx(0.6)
    assert f1(predictions, references, "weighted") == pytest.approx(0.6)
    assert f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)
