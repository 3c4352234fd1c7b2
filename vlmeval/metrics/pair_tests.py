"""Did two runs answer the same questions differently well? Exact McNemar, its form for images, Holm's correction.

McNemar's test takes the questions for independent. Questions about one image are not: a run that reads an image wrong
loses several at once, and the test then finds too much. ``sign_flip`` asks the same of whole images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["holm", "mcnemar", "mcnemar_mid", "sign_flip", "sign_flip_normal"]

_EXACT = 20_000


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided McNemar test: probability of a split at least this uneven under equal chances.

    Source: McNemar, *Psychometrika* 12 (1947); the exact form is the binomial test of half and half.

    Args:
        one: pairs only the first got right.
        other: pairs only the second got right.
    """
    from scipy.special import bdtr

    if one == other:
        return 1.0
    return min(1.0, float(2 * bdtr(min(one, other), one + other, 0.5)))


def mcnemar_mid(one: int, other: int) -> float:
    """McNemar's test with the mid-p: the observed split itself counts half, so the test is less conservative.

    Source: Fagerland, Lydersen and Laake, *BMC Med. Res. Methodol.* 13 (2013) 91.
    """
    from scipy.special import bdtr

    if one == other:
        return 1.0
    fewer, total = min(one, other), one + other
    below = float(bdtr(fewer - 1, total, 0.5)) if fewer else 0.0
    return min(1.0, below + float(bdtr(fewer, total, 0.5)))


def sign_flip(changes: npt.ArrayLike) -> float:
    """Exact two-sided sign-flip test over clusters.

    Where neither run is better, exchanging the two runs' answers to an image is as likely as not; that turns the sign
    of the image's net change. The sum of the net changes is compared with its distribution over all sign patterns,
    which is computed, not drawn: each image contributes ``x^d + x^-d`` to a product of polynomials. With one question
    an image this is the exact McNemar test. Its large-sample form is the modified Obuchowski test of Yang, Sun and
    Hardin, *Biometrical J.* 52 (2010), ``sign_flip_normal``, which is taken where the net changes add up to more than
    20,000. Deviation from Durkalski et al., *Statist. Med.* 22 (2003), 2417, and Eliasziw and Donner, *Statist. Med.*
    10 (1991), 1981: images weigh by their questions, as accuracy does, and no correlation is estimated.

    Args:
        changes: ``[C]`` whole numbers: of each image, questions won minus questions lost.

    Returns:
        The probability of a sum at least this far from zero; 1.0 where nothing changed.
    """
    net = np.asarray(changes, dtype=np.int64)
    sizes, times = np.unique(np.abs(net[net != 0]), return_counts=True)
    total, observed = int((sizes * times).sum()), abs(int(net.sum()))
    if not observed:
        return 1.0
    if total > _EXACT:
        return sign_flip_normal(net)
    # Probabilities of the sum of all changes that kept the sign plus: 0 to ``total``.
    plus = np.ones(1)
    for size, count in zip(sizes.tolist(), times.tolist(), strict=True):
        spread = np.zeros(size * count + 1)
        spread[::size] = _halves(count)
        plus = np.convolve(plus, spread)
    return min(1.0, float(2 * plus[(total + observed) // 2 :].sum()))


def sign_flip_normal(changes: npt.ArrayLike) -> float:
    """The sign-flip test by its normal limit: ``(sum of d)^2 / sum of d^2`` is chi-squared with one degree of freedom.

    Source: Yang, Sun and Hardin, *Biometrical J.* 52 (2010) 638, the modified Obuchowski test.

    Args:
        changes: ``[C]`` net changes of the clusters.
    """
    net = np.asarray(changes, dtype=np.float64)
    squares = float((net * net).sum())
    return math.erfc(math.sqrt(float(net.sum()) ** 2 / squares / 2)) if squares else 1.0


def _halves(count: int) -> npt.NDArray[np.float64]:
    """Binomial probabilities of 0 to ``count`` successes with equal chances."""
    from scipy.special import gammaln

    k = np.arange(count + 1)
    logs = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1) - count * math.log(2)
    return np.asarray(np.exp(logs), dtype=np.float64)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for testing several hypotheses at once; valid however they hang together.

    Source: Holm, *Scand. J. Statist.* 6 (1979).

    Args:
        values: p-values; None for what could not be tested, which does not count.

    Returns:
        Adjusted p-values in the same order: at most 0.05 where the difference stands at a family-wise 5 %.
    """
    tested = sorted((value, index) for index, value in enumerate(values) if value is not None)
    result: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, index) in enumerate(tested):
        highest = max(highest, min(1.0, value * (len(tested) - rank)))
        result[index] = highest
    return result
