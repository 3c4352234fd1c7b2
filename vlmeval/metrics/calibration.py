"""How good the probabilities of yes are: AUROC, calibration errors, Brier score, each with an interval over images.

Of the probability mass that a model gives to spellings of yes and of no as its first token, P(yes) is the share of
yes. Nothing here depends on a threshold but ``accuracy``, which takes the likelier word.

AUROC and Brier score are scikit-learn's. The calibration error (Naeini et al. 2015; Guo et al. 2017,
https://arxiv.org/abs/1706.04599) is the mean distance between P(yes) and the share of questions whose truth is yes,
over 15 bins, weighted by their answers: here of the positive class, not of the likelier one, as scikit-learn's
``calibration_curve`` has it. ``ece`` has bins of equal width, ``ece_mass`` of equal mass (Nixon et al. 2019,
https://arxiv.org/abs/1904.01685). Both are biased upwards where answers are few, and so are their intervals.

Intervals draw whole images, as all intervals do. AUROC is made a function of counters for that: answers are counted in
40 bins of equal mass, and the resampled values are moved by the little that bins lose.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmeval.metrics.intervals import Array

__all__ = ["BINS", "Rated", "curve", "figures"]

BINS = 15
_RANKS = 40
_LOWEST = {"margin": -1.0}
_PLAIN = ("n", "accuracy", "margin", "mass", "brier")
_COUNTERS = (
    *_PLAIN,
    *(f"width{index}" for index in range(BINS)),
    *(f"equal{index}" for index in range(BINS)),
    *(f"{truth}{index}" for truth in ("yes", "no") for index in range(_RANKS)),
)


@dataclass(frozen=True, slots=True)
class Rated:
    """One question with probabilities.

    Attributes:
        cluster: what answers share that are not independent: the image.
        groups: of the report.
        yes: probability mass of yes, in [0, 1].
        no: of no; not both are 0.
        truth: whether yes is right.
    """

    cluster: Hashable
    groups: Sequence[str]
    yes: float
    no: float
    truth: bool

    @property
    def share(self) -> float:
        """P(yes) among yes and no."""
        return self.yes / (self.yes + self.no)


def curve(rated: Sequence[Rated], bins: int = BINS) -> list[dict[str, float]]:
    """The calibration curve: for every bin of equal width that has answers, mean P(yes), share of yes, and n."""
    import numpy as np

    share, truth = np.asarray([one.share for one in rated]), np.asarray([one.truth for one in rated], dtype=float)
    place = np.minimum((share * bins).astype(int), bins - 1)
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "predicted": float(share[place == index].mean()),
            "observed": float(truth[place == index].mean()),
            "n": int((place == index).sum()),
        }
        for index in range(bins)
        if (place == index).any()
    ]


def figures(rated: Sequence[Rated], groups: Sequence[str], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Figures by group.

    Args:
        rated: N questions with their probabilities.
        groups: the groups wanted; one without questions is left out.
        seed: of the bootstrap.

    Returns:
        Group to ``n`` and, each with ``value`` and 95 % ``interval``: ``auroc``, ``ece``, ``ece_mass``, ``brier``,
        ``margin`` (mean of P(truth) - P(other), in [-1, 1]), ``accuracy`` (of the likelier word) and ``mass`` (how
        much of all probability yes and no have together). None where a figure is undefined, as AUROC is where the
        truth never varies.
    """
    import numpy as np

    from vlmeval.metrics.intervals import bootstrap

    order = {cluster: index for index, cluster in enumerate(dict.fromkeys(one.cluster for one in rated))}
    parts = {group: [one for one in rated if group in one.groups] for group in groups}
    found = {group: _Part(members) for group, members in parts.items() if members}
    if len(order) < 2:
        return {group: part.figures(None, 1) for group, part in found.items()}
    tables = [part.sums([order[one.cluster] for one in part.members], len(order)) for part in found.values()]
    drawn = bootstrap(np.concatenate(tables, axis=1), seed=seed)
    width = len(_COUNTERS)
    return {
        group: part.figures(drawn[:, place * width : (place + 1) * width], len(order))
        for place, (group, part) in enumerate(found.items())
    }


class _Part:
    """The questions of one group, binned once."""

    def __init__(self, members: Sequence[Rated]) -> None:
        import numpy as np

        self.members = members
        yes, no = (np.asarray([getattr(one, name) for one in members], dtype=np.float64) for name in ("yes", "no"))
        self.truth = np.asarray([one.truth for one in members], dtype=bool)
        self.share = yes / (yes + no)
        with np.errstate(divide="ignore"):
            # Ranks of the odds tell apart what P(yes) rounds to 1.
            self.rank = np.unique(np.log(yes) - np.log(no), return_inverse=True)[1].astype(np.float64)
        # The likelier word; at exactly one half there is none, and the answer is wrong.
        right = np.where(self.truth, yes > no, no > yes)
        sure = np.where(self.truth, 2 * self.share - 1, 1 - 2 * self.share)
        self.plain = {"n": np.ones(len(members)), "accuracy": right, "margin": sure, "mass": yes + no}
        self.plain["brier"] = (self.share - self.truth) ** 2

    def sums(self, places: Sequence[int], clusters: int) -> Array:
        """Counters summed by cluster, ``[clusters, len(_COUNTERS)]`` in the order of ``_COUNTERS``."""
        import numpy as np

        place, off = np.asarray(places), self.share - self.truth

        def binned(bin_of: Any, bins: int, weights: Any) -> Array:
            flat = np.bincount(place * bins + bin_of, weights=weights, minlength=clusters * bins)
            return flat.reshape(clusters, bins).astype(np.float64)

        ranked = _mass_bins(self.rank, _RANKS)
        table = [binned(np.zeros_like(place), 1, self.plain[name]) for name in _PLAIN]
        table += [binned(np.minimum((self.share * BINS).astype(int), BINS - 1), BINS, off)]
        table += [binned(_mass_bins(self.rank, BINS), BINS, off)]
        table += [binned(ranked, _RANKS, self.truth), binned(ranked, _RANKS, ~self.truth)]
        return np.concatenate(table, axis=1)

    def figures(self, drawn: Array | None, clusters: int) -> dict[str, Any]:
        """Exact values of this group, and intervals from resampled counters ``[R, len(_COUNTERS)]``."""
        from sklearn.metrics import brier_score_loss, roc_auc_score

        from vlmeval.metrics.intervals import interval

        binned = _from_counters(self.sums([0] * len(self.members), 1))
        values: dict[str, float | None] = {name: float(value[0]) for name, value in binned.items()}
        area = values["auroc"]
        both = 0 < self.truth.sum() < len(self.truth)
        values["auroc"] = float(roc_auc_score(self.truth, self.rank)) if both else None
        values["brier"] = float(brier_score_loss(self.truth, self.share, labels=[False, True], pos_label=True))
        result: dict[str, Any] = {"n": len(self.members)}
        resampled = _from_counters(drawn) if drawn is not None else {}
        for name, value in values.items():
            span = interval(resampled[name], clusters) if resampled and value is not None else None
            moved = value - area if name == "auroc" and value is not None and area is not None else 0.0
            ends = [min(max(end + moved, _LOWEST.get(name, 0.0)), 1.0) for end in span] if span else None
            result[name] = {"value": value, "interval": ends}
        return result


def _from_counters(table: Array) -> dict[str, Array]:
    """Figures ``[R]`` of summed counters ``[R, len(_COUNTERS)]``; nan where undefined."""
    import numpy as np

    def ratio(top: Any, bottom: Any) -> Any:
        return top / np.where(bottom == 0, np.nan, bottom)

    plain, binned = {name: table[:, place] for place, name in enumerate(_PLAIN)}, table[:, len(_PLAIN) :]
    width, equal = binned[:, :BINS], binned[:, BINS : 2 * BINS]
    yes, no = binned[:, 2 * BINS : 2 * BINS + _RANKS], binned[:, 2 * BINS + _RANKS :]
    below = np.cumsum(no, axis=1) - no / 2
    return {
        # Ties inside a bin are counted half.
        "auroc": ratio((yes * below).sum(axis=1), yes.sum(axis=1) * no.sum(axis=1)),
        # A bin's distance times its answers is the sum of its differences.
        "ece": ratio(np.abs(width).sum(axis=1), plain["n"]),
        "ece_mass": ratio(np.abs(equal).sum(axis=1), plain["n"]),
        **{name: ratio(plain[name], plain["n"]) for name in ("brier", "margin", "accuracy", "mass")},
    }


def _mass_bins(rank: Array, bins: int) -> Any:
    """Bin of each answer, with about as many answers in each; answers of one rank are never parted."""
    import numpy as np

    edges = np.unique(np.quantile(rank, np.arange(1, bins) / bins, method="higher"))
    return np.searchsorted(edges, rank, side="right")
