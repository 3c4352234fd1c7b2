"""Published figures without their answers: could this difference be chance?

Of two shares of n questions only the figures are known, so only bounds can be given. As two independent samples they
differ by chance as much as the unpaired interval says. Answered by both models, the same n questions pair the answers,
and the difference is known the better the fewer answers differ: ``changed`` at least as many as their balance, at most
all. What is inside noise unpaired is beyond it, paired, only if few enough answers changed; how few is computed from
the exact McNemar test at the rounding that favours the difference most. Questions that share an image make every bound
wider still, which figures alone cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

from vlmdata.errors import ConfigError

__all__ = ["Judged", "judge"]


@dataclass(frozen=True, slots=True)
class Judged:
    """Two published figures, judged. Figures and differences are in percent and percentage points.

    Attributes:
        before: the first figure.
        after: the second.
        n: questions behind each.
        difference: second minus first.
        interval: 95 % interval of the difference, were the two sets of answers independent.
        p: two-sided p-value of that.
        mdd: the least true difference two independent sets of n answers find four times in five.
        n_needed: questions at which they would find the observed difference as often; None where there is none.
        net: fewest and most questions that the balance of changed answers can be, given the figures' rounding.
        most_changed: at how many changed answers the difference is at most beyond noise, of the largest balance; 0
            where it is inside noise however the answers were.
        paired: for a given share of changed answers its 95 % interval; None where no share was given.
        verdict: inside noise or beyond noise: paired where ``changed`` was given, else unpaired.
        words: the verdict as sentences.
    """

    before: float
    after: float
    n: int
    difference: float
    interval: tuple[float, float]
    p: float
    mdd: float
    n_needed: int | None
    net: tuple[int, int]
    most_changed: int
    paired: tuple[float, float] | None
    verdict: str
    words: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            name: list(value) if isinstance(value, tuple | list) else value
            for name, value in ((name, getattr(self, name)) for name in self.__slots__)
        }


def judge(
    before: float, after: float, n: int, *, decimals: tuple[int, int] = (1, 1), changed: float | None = None
) -> Judged:
    """Say whether the difference of two published shares is more than noise.

    Args:
        before: first figure, in percent.
        after: second figure, in percent.
        n: questions behind each of them, the same for both.
        decimals: digits after the point that each figure was rounded to.
        changed: percent of the answers that differ between the two, where that is known or assumed.

    Raises:
        ConfigError: a figure is no percentage, n is not at least 1, or ``changed`` is impossible.
    """
    # Each figure is off by half a unit of its last digit at most.
    slack = sum(10.0**-digits for digits in decimals) / 2
    _check(before, after, n, max(decimals), slack, changed)
    from vlmeval.metrics import power

    difference = round(after - before, max(decimals))
    interval, error = _unpaired(before / 100, after / 100, n)
    net = _net(abs(difference), n, slack)
    most = _most_changed(net[1], n)
    paired = None if changed is None else _paired(difference, n, changed)
    found = Judged(
        before,
        after,
        n,
        difference,
        interval,
        math.erfc(abs(sum(interval)) / 2 / error / math.sqrt(2)),
        power.detectable(error),
        power.needed(n, difference, error),
        net,
        most,
        paired,
        _verdict(interval, paired),
        (),
    )
    return _worded(found, max(decimals), changed)


def _check(before: float, after: float, n: int, decimals: int, slack: float, changed: float | None) -> None:
    for figure in (before, after):
        if not 0 <= figure <= 100:
            raise ConfigError(f"{figure:g} is no percentage: figures are shares of n questions, from 0 to 100")
    if max(before, after) <= 1 and decimals > 1:
        raise ConfigError(
            f"figures are percent: write {100 * before:g} {100 * after:g} for {before:g} {after:g} (of shares below "
            "one percent, give what is left to 100)"
        )
    if n < 1:
        raise ConfigError(f"--n is the number of questions, at least 1, got {n}")
    least = max(0.0, round(abs(after - before) - slack, decimals + 1))
    if changed is not None and not (least <= changed <= 100):
        raise ConfigError(
            f"--changed is the percent of answers that differ: at least the difference, {least:g}, and at most 100; "
            f"got {changed:g}"
        )


def _unpaired(before: float, after: float, n: int) -> tuple[tuple[float, float], float]:
    """The 95 % interval of two independent samples and its standard error, in points.

    Source: Agresti and Caffo, *The American Statistician* 54 (2000) 280: Wald's interval after one right and one wrong
    answer are added to each sample; it stays sound for few questions and for figures near 0 and 100.
    """
    one, other = ((share * n + 1) / (n + 2) for share in (before, after))
    error = 100 * math.sqrt((one * (1 - one) + other * (1 - other)) / (n + 2))
    middle, reach = 100 * (other - one), NormalDist().inv_cdf(0.975) * error
    return (max(-100.0, middle - reach), min(100.0, middle + reach)), error


def _net(difference: float, n: int, slack: float) -> tuple[int, int]:
    """Fewest and most questions between the two counts of right answers."""
    # Rounded to millionths, so that floating point does not push a whole number past itself.
    fewest = math.ceil(round(max(0.0, difference - slack) * n / 100, 6))
    return fewest, math.floor(round(min(100.0, difference + slack) * n / 100, 6))


def _most_changed(net: int, n: int) -> int:
    """How many answers may differ for a balance of ``net`` to be beyond noise by the exact McNemar test."""
    from vlmeval.metrics.pair_tests import mcnemar

    def beyond(lost: int) -> bool:
        return net + 2 * lost <= n and mcnemar(lost, lost + net) <= 0.05

    if not beyond(0):
        return 0
    low, high = 0, max(1, n)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if beyond(middle) else (low, middle)
    return net + 2 * low


def _paired(difference: float, n: int, changed: float) -> tuple[float, float]:
    """The 95 % interval when ``changed`` percent of the answers differ: Wald's, of paired proportions."""
    share, net = changed / 100, difference / 100
    reach = 100 * NormalDist().inv_cdf(0.975) * math.sqrt(max(0.0, share - net * net) / n)
    return difference - reach, difference + reach


def _verdict(interval: tuple[float, float], paired: tuple[float, float] | None) -> str:
    low, high = paired or interval
    return "inside noise" if low <= 0 <= high else "beyond noise"


def _worded(found: Judged, decimals: int, changed: float | None) -> Judged:
    def points(value: float) -> str:
        return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")

    def span(edges: tuple[float, float]) -> str:
        return f"{points(edges[0])} to {points(edges[1])}"

    n = f"{found.n:,}"
    start = f"{found.before:.{decimals}f} → {found.after:.{decimals}f}: {points(found.difference)} at n = {n}"
    words = [f"{start} is {found.verdict}."]
    words.append(
        f"As two independent sets of answers: 95 % interval {span(found.interval)}, p = {found.p:.2g}; such a "
        f"comparison can see {found.mdd:.{decimals}f} points or more."
    )
    if found.paired and changed is not None:
        words.append(
            f"As answers to the same questions of which {changed:g} % differ: 95 % interval {span(found.paired)}."
        )
    share = f"{found.most_changed:,} answers ({100 * found.most_changed / found.n:.2g} %)"
    rounding = f"at the most favourable rounding (a balance of {found.net[1]:,})"
    if not found.most_changed:
        words.append("On the same questions it would be inside noise however the answers were.")
    elif found.most_changed >= found.n - 1:
        words.append("On the same questions it would be beyond noise however many answers differed.")
    else:
        words.append(f"On the same questions it is beyond noise only if at most {share} differed at all, {rounding}.")
    if found.n_needed and found.verdict == "inside noise":
        words.append(
            f"To see this difference unpaired would take about {float(f'{found.n_needed:.2g}'):,.0f} questions."
        )
    words.append("Questions that share an image make noise larger still; raw answers would tell: vlmeval compare.")
    return replace(found, words=tuple(words))
