from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from vlmeval.metrics import power
from vlmeval.metrics.intervals import bootstrap, interval, standard_error
from vlmeval.metrics.pair_tests import holm, mcnemar, mcnemar_mid, sign_flip, sign_flip_normal

COUNTS = st.integers(0, 4000)


@settings(max_examples=100, deadline=None)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    # scipy's own value sinks to 0.0 while it can still be written: 10 against 1,065 is 2.7e-300.
    expected = binomtest(one, one + other, 0.5).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-8, abs=1e-250)


@settings(max_examples=30, deadline=None)
@example(10, 1065)
@given(COUNTS, COUNTS)
def test_mcnemar_is_the_exact_fraction_down_to_where_floats_end(one: int, other: int) -> None:
    n, term, tail = one + other, 1, 0
    for k in range(min(one, other) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    exact = min(1.0, float(Fraction(2 * tail, 2**n)))
    assert mcnemar(one, other) == pytest.approx(exact, rel=1e-8, abs=1e-305)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (5, 3), (3, 5), (10, 0), (1887, 1260), (50, 50)])
def test_mcnemar_is_the_sum_in_whole_numbers(one: int, other: int) -> None:
    n = one + other
    tail = sum(math.comb(n, k) for k in range(min(one, other) + 1))
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-10)
    inner = 2 * tail - math.comb(n, min(one, other))
    assert mcnemar_mid(one, other) == pytest.approx(min(1.0, inner / 2**n) if one != other else 1.0, rel=1e-10)


def test_mcnemar_of_large_counts() -> None:
    assert f"{mcnemar(1887, 1260):.1e}" == "4.3e-29"
    assert f"{mcnemar(2862, 3388):.1e}" == "3.0e-11"
    assert 0 <= mcnemar(3810, 1029) < 1e-300
    assert mcnemar(600_000, 599_000) == pytest.approx(0.3616, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flips_are_all_sign_patterns(changes: list[int]) -> None:
    sums = [sum(sign * change for sign, change in zip(signs, changes, strict=True)) for signs in _signs(len(changes))]
    expected = sum(abs(value) >= abs(sum(changes)) for value in sums) / len(sums)
    assert sign_flip(changes) == pytest.approx(expected, rel=1e-9)


def _signs(count: int) -> list[tuple[int, ...]]:
    return list(product((-1, 1), repeat=count))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500))
def test_one_question_an_image_is_mcnemar(one: int, other: int) -> None:
    assert sign_flip([-1] * one + [1] * other) == pytest.approx(mcnemar(one, other), rel=1e-8)


def test_sign_flips_of_many_images_are_nearly_normal() -> None:
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.1, 0.2):
        changes = np.rint(rng.normal(shift, 2, 1000)).astype(int)
        assert sign_flip(changes) == pytest.approx(sign_flip_normal(changes), rel=0.1, abs=0.02)
    many = np.rint(rng.normal(0.02, 2, 40_000)).astype(int)
    assert np.abs(many).sum() > 20_000
    assert sign_flip(many) == sign_flip_normal(many)
    assert sign_flip([]) == sign_flip_normal([]) == sign_flip([3, -3]) == 1.0


def test_images_that_change_as_a_whole_are_not_many_questions() -> None:
    """Ten images lose all five questions, four win all five: McNemar finds what is not there."""
    changes = [-5] * 10 + [5] * 4
    assert mcnemar(50, 20) < 0.001
    assert sign_flip(changes) == pytest.approx(mcnemar(10, 4)) and sign_flip(changes) > 0.15


def test_the_clustered_test_keeps_its_level() -> None:
    """No difference, answers of an image alike: 5 % of the tests may err. McNemar's errs far more often."""
    rng = np.random.default_rng(5)
    wrong = blind = 0
    for _ in range(400):
        lean = rng.choice([-0.8, 0.8], 60)
        won = rng.binomial(8, (1 + lean) / 4)
        lost = rng.binomial(8, (1 - lean) / 4)
        wrong += sign_flip(won - lost) <= 0.05
        blind += mcnemar(int(lost.sum()), int(won.sum())) <= 0.05
    assert wrong / 400 <= 0.08
    assert blind / 400 > 0.12


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == [] and holm([None]) == [None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_the_value_and_bonferroni(values: list[float]) -> None:
    found = holm(values)
    for value, corrected in zip(values, found, strict=True):
        assert corrected is not None and value <= corrected <= min(1.0, value * len(values))
    order = sorted(range(len(values)), key=values.__getitem__)
    assert [found[i] for i in order] == sorted(found, key=lambda value: value or 0.0)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    """Paired answers of 100 images, clustered, with a true gain of what one comparison said it could see."""
    rng = np.random.default_rng(6)

    def sample(gain: float) -> np.ndarray:
        lean = rng.normal(gain, 0.15, 100)
        won = rng.binomial(10, np.clip(0.15 + lean / 2, 0, 0.5))
        lost = rng.binomial(10, np.clip(0.15 - lean / 2, 0, 0.5))
        return np.stack([won - lost, np.full(100, 10)], axis=1).astype(float)

    def resampled(sums: np.ndarray, seed: int) -> np.ndarray:
        drawn = bootstrap(sums, resamples=400, seed=seed)
        return drawn[:, 0] / drawn[:, 1]

    error = float(np.mean([standard_error(resampled(sample(0), seed)) or 0 for seed in range(40)]))
    gain = power.detectable(error)
    found = 0
    for seed in range(300):
        low, _ = interval(resampled(sample(gain), seed), 100) or (0, 0)
        found += low > 0
    assert 0.7 < found / 300 < 0.9


def test_the_size_that_a_difference_needs() -> None:
    assert power.detectable(1.0) == pytest.approx(2.8016, abs=1e-4)
    # Four times the images halve the error.
    assert power.needed(100, power.detectable(0.5), 1.0) == 400
    assert power.needed(100, 0.0, 1.0) is None and power.needed(100, 1.0, 0.0) is None
