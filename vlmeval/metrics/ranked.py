"""Whole answers ranked by the log-likelihood a model gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmeval.task import Item, Response

__all__ = ["Ranking", "order", "ranking"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a response says about an item's choices.

    Attributes:
        first: place of the likeliest choice; None where the response does not tell.
        order: places of the choices, the likeliest first; of choices alike, the first comes first. Empty without
            likelihoods.
        each: log-likelihood of each choice; None where they are not known.
        tokens: how many tokens each choice has; empty without likelihoods.
    """

    first: int | None
    order: tuple[int, ...] = ()
    each: tuple[float, ...] | None = None
    tokens: tuple[int, ...] = ()


def ranking(item: Item, response: Response) -> Ranking:
    """Read a response to an item of kind ``choice``.

    Its ``detail`` holds ``log_likelihoods`` and ``tokens``; where it does not, or they are no finite numbers, one for
    each choice, its text may still be the place of the likeliest ("0").
    """
    number = len(item.choices)
    each, tokens = (_numbers(response.detail.get(name), number) for name in ("log_likelihoods", "tokens"))
    if each and tokens and min(tokens) >= 1:
        places = order(each)
        return Ranking(places[0], tuple(places), each, tuple(map(int, tokens)))
    text = (response.text or "").strip()
    place = int(text) if text.isascii() and text.isdigit() and len(text) < 7 else number
    return Ranking(place if place < number else None)


def order(values: Sequence[float]) -> list[int]:
    """Places of values, the largest first."""
    return sorted(range(len(values)), key=lambda place: -values[place])


def _numbers(values: object, length: int) -> tuple[float, ...]:
    """A list of as many finite numbers; nothing where it is not."""
    listed = values if isinstance(values, list | tuple) and len(values) == length else ()
    numbers = (one for one in listed if isinstance(one, int | float) and not isinstance(one, bool))
    found = tuple(float(one) for one in numbers if math.isfinite(one))
    return found if len(found) == length else ()
