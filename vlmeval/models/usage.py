"""What the answers of a server cost: tokens, time, attempts, summed over the recorded answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlmeval.task import Response

__all__ = ["remarks", "usage"]


def usage(responses: Iterable[Response]) -> dict[str, Any]:
    """The sums over all answers of a server, of this and of earlier runs; empty where no answer is one.

    Returns:
        ``answers``; ``prompt_tokens`` and ``completion_tokens`` (of the ``counted`` answers whose server counts them);
        ``mean_seconds`` of the request that was answered; ``repeated`` requests; how many answers were ``truncated``
        or are a ``refusal``; in how many ``not_among_likeliest`` holds a word, so that its probability counts as 0.
    """
    details = [response.detail for response in responses if "seconds" in response.detail]
    if not details:
        return {}
    tokens = [detail["tokens"] for detail in details if detail.get("tokens")]
    found: dict[str, Any] = {"answers": len(details)}
    if tokens:
        sums = {f"{name}_tokens": sum(count.get(name, 0) for count in tokens) for name in ("prompt", "completion")}
        found |= {"counted": len(tokens), **sums}
    found["mean_seconds"] = round(sum(detail["seconds"] for detail in details) / len(details), 4)
    found["repeated"] = sum(detail.get("attempts", 1) - 1 for detail in details)
    for name in ("truncated", "refusal", "not_among_likeliest"):
        found[name] = sum(bool(detail.get(name)) for detail in details)
    return found


def remarks(spent: Mapping[str, Any]) -> list[str]:
    """What a reader of the report must be told of ``usage``."""
    said = {
        "truncated": "ended at the limit of new tokens",
        "refusal": "are refusals that the server marks as such; they are scored as they are",
        "not_among_likeliest": "have a word that is not among the likeliest first tokens; its probability counts as 0",
    }
    total = spent.get("answers", 0)
    return [f"{spent[name]} of {total} served answers {what}." for name, what in said.items() if spent.get(name)]
