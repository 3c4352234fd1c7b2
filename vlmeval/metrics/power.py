"""What a comparison can see: the minimum detectable difference, and the size that a difference would need."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["LEVEL", "POWER", "detectable", "needed"]

LEVEL = 0.05
POWER = 0.8


def detectable(error: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """The smallest true difference that a two-sided test finds with the given probability.

    ``(z[1 - level / 2] + z[power]) * error``, 2.80 standard errors at 5 % and 80 %. The error of the observed
    difference is taken, which is that of paired answers and whole images when it comes from their bootstrap.
    Source: Miller, *Adding Error Bars to Evals*, https://arxiv.org/abs/2411.00640; Card et al., *With Little
    Power Comes Great Responsibility*, https://arxiv.org/abs/2010.06595.

    Args:
        error: standard error of the difference, in its unit.
        level: of the two-sided test.
        power: probability of finding the difference.

    Returns:
        In the unit of ``error``.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * error


def needed(size: int, difference: float, error: float, *, level: float = LEVEL, power: float = POWER) -> int | None:
    """How large a sample would find a true difference as large as the observed one.

    The error falls with the root of the size, whatever its units: images when images were drawn.

    Args:
        size: of the sample that gave the error.
        difference: to be found.
        error: standard error of the difference, in its unit.
        level: of the two-sided test.
        power: probability of finding it.

    Returns:
        A size in the unit of ``size``; None where there is no difference.
    """
    if not difference or not error:
        return None
    return math.ceil(size * (detectable(error, level=level, power=power) / abs(difference)) ** 2)
