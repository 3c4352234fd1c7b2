from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from vlmeval.metrics import calibration
from vlmeval.metrics.calibration import BINS, Rated


def drawn(count: int, seed: int = 0, images: int = 40) -> list[Rated]:
    """A model that is somewhat right and too sure of itself."""
    rng = random.Random(seed)
    found = []
    for index in range(count):
        truth = rng.random() < 0.4
        share = 1 / (1 + math.exp(-rng.gauss(2.0 if truth else -2.0, 2.5)))
        mass = rng.uniform(0.5, 1)
        found.append(Rated(index % images, ("all", rng.choice("ab")), share * mass, (1 - share) * mass, truth))
    return found


def plain_error(rated: Sequence[Rated]) -> float:
    """Expected calibration error, bin by bin."""
    error = 0.0
    for index in range(BINS):
        inside = [one for one in rated if min(int(one.share * BINS), BINS - 1) == index]
        if inside:
            confidence = sum(one.share for one in inside) / len(inside)
            observed = sum(one.truth for one in inside) / len(inside)
            error += abs(confidence - observed) * len(inside) / len(rated)
    return error


def plain_area(truth: Sequence[bool], share: Sequence[float]) -> float:
    """How often a yes is above a no."""
    sure, values = np.asarray(truth), np.asarray(share)
    above = values[sure][:, None] - values[~sure][None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def test_values_are_those_of_scikit_learn() -> None:
    rated = drawn(900)
    found = calibration.figures(rated, ("all", "a", "none"))
    assert list(found) == ["all", "a"]
    for group, figures in found.items():
        members = [one for one in rated if group in one.groups]
        truth, share = [one.truth for one in members], [one.share for one in members]
        assert figures["n"] == len(members)
        assert figures["auroc"]["value"] == pytest.approx(roc_auc_score(truth, share))
        assert figures["brier"]["value"] == pytest.approx(brier_score_loss(truth, share))
        assert figures["ece"]["value"] == pytest.approx(plain_error(members))
        right = [(one.yes > one.no) == one.truth for one in members]
        assert figures["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
        margins = [(one.yes - one.no) / (one.yes + one.no) * (1 if one.truth else -1) for one in members]
        assert figures["margin"]["value"] == pytest.approx(sum(margins) / len(margins))
        assert figures["mass"]["value"] == pytest.approx(sum(one.yes + one.no for one in members) / len(members))
        for name in ("auroc", "brier", "margin", "accuracy", "mass"):
            low, high = figures[name]["interval"]
            assert low < figures[name]["value"] < high


def test_the_curve_is_that_of_scikit_learn() -> None:
    rated = drawn(500)
    truth, share = [one.truth for one in rated], [one.share for one in rated]
    observed, predicted = calibration_curve(truth, share, n_bins=BINS)
    bins = calibration.curve(rated)
    assert [one["observed"] for one in bins] == pytest.approx(observed)
    assert [one["predicted"] for one in bins] == pytest.approx(predicted)
    assert sum(one["n"] for one in bins) == 500


def test_equal_mass_bins_hold_as_many_answers() -> None:
    rank = np.random.default_rng(0).permutation(300).astype(float)
    assert set(np.bincount(calibration._mass_bins(rank, BINS))) <= {19, 20, 21}
    assert set(calibration._mass_bins(np.zeros(7), BINS)) == {1}


def test_intervals_are_those_of_a_plain_loop_over_images() -> None:
    rated = drawn(200, seed=3, images=25)
    figures = calibration.figures(rated, ("all",))["all"]
    by_image = [[one for one in rated if one.cluster == image] for image in range(25)]
    rng = np.random.default_rng(7)
    values: dict[str, list[float]] = {"auroc": [], "ece": [], "brier": []}
    for _ in range(400):
        chosen = [one for image in rng.integers(0, 25, 25) for one in by_image[image]]
        truth, share = [one.truth for one in chosen], [one.share for one in chosen]
        values["auroc"].append(plain_area(truth, share))
        values["brier"].append(float(np.mean((np.asarray(truth) - np.asarray(share)) ** 2)))
        values["ece"].append(plain_error(chosen))
    for name, resampled in values.items():
        low, high = np.percentile(resampled, [2.5, 97.5])
        width = high - low
        assert figures[name]["interval"] == pytest.approx([low, high], abs=0.25 * width), name


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from([0.0, 1e-30, 0.1, 0.5, 1.0]),
            st.sampled_from([0.0, 0.1, 0.5]),
            st.booleans(),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_probabilities(rows: list[tuple[int, float, float, bool]]) -> None:
    """Zeros, ties and a truth that never varies: every figure is a number in its range, or None."""
    rated = [Rated(image, ("all",), yes, no, truth) for image, yes, no, truth in rows if yes + no]
    if not rated:
        return
    figures = calibration.figures(rated, ("all",))["all"]
    assert (figures["auroc"]["value"] is None) == (len({one.truth for one in rated}) == 1)
    for name in ("auroc", "ece", "ece_mass", "brier", "accuracy"):
        value = figures[name]["value"]
        assert value is None or 0 <= value <= 1 + 1e-9
        assert (
            figures[name]["interval"] is None or 0 <= figures[name]["interval"][0] <= figures[name]["interval"][1] <= 1
        )
    assert -1 <= figures["margin"]["value"] <= 1
    assert sum(one["n"] for one in calibration.curve(rated)) == len(rated)


def test_ranks_tell_apart_what_rounds_to_one() -> None:
    """P(yes) is 1.0 for both, the odds are not."""
    sure, surer = Rated(0, ("all",), 1.0, 1e-20, False), Rated(1, ("all",), 1.0, 1e-30, True)
    assert sure.share == surer.share == 1
    assert calibration.figures([sure, surer], ("all",))["all"]["auroc"]["value"] == 1


def test_one_image_has_no_intervals() -> None:
    figures = calibration.figures([Rated(0, ("all",), 0.9, 0.1, True), Rated(0, ("all",), 0.5, 0.5, False)], ("all",))
    assert figures["all"]["auroc"] == {"value": 1.0, "interval": None}
    assert figures["all"]["accuracy"]["value"] == 0.5
