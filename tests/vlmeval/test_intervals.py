from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0, 1))
def test_wilson_is_where_the_score_test_ends(trials: int, share: float) -> None:
    """Both ends are the proportions that a score test at 5 % just does not reject."""
    successes = round(share * trials)
    found = intervals.wilson(successes, trials)
    assert found is not None
    for edge in found:
        if 0 < edge < 1:
            score = (successes / trials - edge) / math.sqrt(edge * (1 - edge) / trials)
            assert abs(score) == pytest.approx(1.959964, rel=1e-5)
    assert found[0] <= successes / trials <= found[1]


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


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_fast_bootstrap_is_the_plain_loop(data: st.DataObject) -> None:
    clusters, counters = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    cells = st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0]), min_size=counters, max_size=counters)
    sums = np.array(data.draw(st.lists(cells, min_size=clusters, max_size=clusters)))
    seed = data.draw(st.integers(0, 9))
    fast = intervals.bootstrap(sums, resamples=50, seed=seed)
    np.testing.assert_allclose(fast, intervals.bootstrap_plain(sums, resamples=50, seed=seed), atol=1e-12)


def test_the_fast_bootstrap_is_the_plain_loop_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples that do not fit into one piece, clusters with the same counters, and none at all."""
    rng = np.random.default_rng(2)
    sums = rng.integers(0, 2, (300, 3)).astype(float)
    whole = intervals.bootstrap(sums, resamples=101, seed=8)
    monkeypatch.setattr(intervals, "_CHUNK_CELLS", 3000)
    np.testing.assert_array_equal(intervals.bootstrap(sums, resamples=101, seed=8), whole)
    np.testing.assert_array_equal(intervals.bootstrap_plain(sums, resamples=101, seed=8), whole)
    assert intervals.bootstrap(np.zeros((0, 3)), resamples=7).shape == (7, 3)
    assert intervals.bootstrap(np.zeros((5, 0)), resamples=7).shape == (7, 0)


def test_the_interval_covers() -> None:
    """Correlated answers of 60 images, 400 times: 95 % of the intervals hold the truth, of unclustered ones fewer."""
    rng = np.random.default_rng(1)
    covered = blind = 0
    for run in range(400):
        n = rng.integers(7, 26, 60)
        right = rng.binomial(n, rng.beta(4.25, 0.75, 60))
        sums = np.stack([right, n], axis=1).astype(float)
        drawn = intervals.bootstrap(sums, resamples=400, seed=run)
        low, high = intervals.interval(drawn[:, 0] / drawn[:, 1], 60) or (0, 0)
        covered += low <= 0.85 <= high
        share = right.sum() / n.sum()
        blind += abs(share - 0.85) <= 1.96 * math.sqrt(share * (1 - share) / n.sum())
    assert 0.91 <= covered / 400 <= 0.98
    assert blind / 400 < 0.85


def test_few_clusters_widen_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    widths = []
    for clusters in (None, 1000, 30, 5):
        low, high = intervals.interval(values, clusters) or (0.0, 0.0)
        widths.append((high - low) / 3.92)
    # Student's quantile over the normal one, and the root of C / (C - 1).
    assert widths == pytest.approx([1, 1.0017, 1.061, 1.584], rel=0.02)
    assert intervals.interval(values, 1) is None


@settings(max_examples=40, deadline=None)
@given(st.floats(-6, 6), st.sampled_from([None, 4, 30, 1000]))
def test_the_p_value_and_the_interval_agree(shift: float, clusters: int | None) -> None:
    """Near the border the far tail of 2,000 resamples is known to some digits only."""
    values = np.random.default_rng(3).normal(shift, 1, 2000)
    p, span = intervals.two_sided(values, clusters), intervals.interval(values, clusters)
    assert p is not None and span is not None
    assert (p <= 0.05) == (not span[0] <= 0 <= span[1]) or abs(p - 0.05) < (0.02 if clusters == 4 else 0.004)
    assert 0 < p <= 1


def test_p_values_of_normal_resamples() -> None:
    values = np.random.default_rng(7).normal(size=40_000)
    for shift in (0.5, 1.0, 1.8, 2.5):
        expected = math.erfc(shift / math.sqrt(2))
        assert intervals.two_sided(values + shift) == pytest.approx(expected, rel=0.1)
        # Student's distribution with 9 degrees of freedom, the resamples' spread enlarged to the sample's.
        few = 2 * student.sf(shift * math.sqrt(0.9), 9)
        assert intervals.two_sided(values + shift, 10) == pytest.approx(few, rel=0.1)


def test_p_values_at_the_ends() -> None:
    assert intervals.two_sided(np.zeros(100)) == 1.0
    assert intervals.two_sided(np.full(100, np.nan)) is None
    assert intervals.two_sided(np.full(999, 2.0)) == pytest.approx(1 / 1000)
    far = intervals.two_sided(np.random.default_rng(0).normal(500, 1, 1000), 50)
    assert far is not None and 0 <= far < 1e-20


def test_a_standard_error_is_the_spread_of_what_is_defined() -> None:
    assert intervals.standard_error(np.array([1.0, 2.0, 3.0])) == pytest.approx(1.0)
    assert intervals.standard_error(np.array([1.0, np.nan])) is None
    assert intervals.standard_error(np.array([*[1.0] * 50, 3.0, np.nan])) == pytest.approx(
        np.std([*[1] * 50, 3], ddof=1)
    )


def test_labels() -> None:
    predictions, references = [0, 1, 2, 2, 1], [0, 1, 1, 2, 2]
    assert accuracy(predictions, references) == 0.6
    # Per class 1, 1/2, 1/2.
    assert f1(predictions, references) == pytest.approx(2 / 3)
    assert f1(predictions, references, "micro") == pytest.approx(0.6)
    assert f1(predictions, references, "weighted") == pytest.approx(0.6)
    assert f1(["a", "a"], ["a", "b"]) == pytest.approx((2 / 3 + 0) / 2)
