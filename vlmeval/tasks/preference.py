"""Which of two answers a model finds likelier: how often it ranks the better one above the worse.

Data: preference shards of ``vlmdata convert`` (rlaif_v, rlhf_v, pairs ...); ``prompt`` is shown, ``chosen`` and
    ``rejected`` are ranked

Nothing is generated: an answer's log-likelihood is the sum over its tokens, its end included, as in DPO
(https://arxiv.org/abs/2305.18290). ``accuracy`` is the share of pairs whose better answer has the larger sum,
``accuracy_per_token`` the same by the mean over the tokens, as reward-free ranking is told in SimPO
(https://arxiv.org/abs/2405.14734); ``margin`` and ``margin_per_token`` are the mean differences in nats. A tie is not
right; ties are counted. Deviation from the reward accuracy of DPO training: there the reference model's log-likelihoods
are taken off first; here each model speaks for itself, and ``vlmeval compare BASE TUNED`` shows what training changed.

Sums favour the shorter answer; figures stand therefore also for the pairs whose better answer is the longer one, and
the shorter one (in characters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.errors import DataError
from vlmeval.conversations import NONE, spoken
from vlmeval.metrics.ranked import ranking
from vlmeval.shardset import SPLIT, ShardSet, open_set
from vlmeval.task import Benchmark, Item, Metric, Response, Score, Sums, Task, ratio

__all__ = ["TASK"]

_GROUPS = {
    "all": "All pairs",
    "longer": "Chosen longer",
    "shorter": "Chosen shorter",
    "same_length": "Same length",
}
_SHOWN = 5
_LISTED = 50


@dataclass(slots=True)
class _Skipped:
    """Rows that cannot be asked: ids by reason."""

    rows: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, ident: str) -> None:
        self.rows.setdefault(reason, []).append(ident)

    def notes(self) -> list[str]:
        return [
            f"{len(ids)} rows are not asked, {reason}: {', '.join(ids[:_SHOWN])}{' ...' if len(ids) > _SHOWN else ''}."
            for reason, ids in self.rows.items()
        ]

    def tables(self) -> list[dict[str, Any]]:
        rows = [[ident, reason] for reason, ids in self.rows.items() for ident in ids]
        title = "Rows not asked" + (f" (the first {_LISTED} of {len(rows)})" if len(rows) > _LISTED else "")
        return [{"title": title, "columns": ["id", "reason"], "rows": rows[:_LISTED]}] if rows else []


def _open(data: Path, settings: Mapping[str, Any], answered: frozenset[int | str] | None) -> Benchmark:
    """Open a dataset of preferences."""
    found = open_set(data, settings.get("split"), kind="preference")
    skipped = _Skipped()
    items = _items(found, skipped)
    if not items:
        raise DataError(f"no row of {found.folder} holds two answers that can be ranked: {' '.join(skipped.notes())}")
    longer = sum("longer" in item.groups for item in items)
    notes = [*found.notes, *skipped.notes()]
    notes.append(
        f"The longer answer is the better one in {100 * longer / len(items):.1f} % of {len(items)} pairs: that much is "
        "right without a look."
    )
    protocol = {**found.protocol, "pairs": len(items), "not_asked": sum(map(len, skipped.rows.values()))}

    def summarize(scores: Sequence[Score]) -> dict[str, Any]:
        return _summary(scores, skipped)

    return Benchmark(
        tuple(items), frozenset(), found.data, protocol, _score, summarize, tuple(notes), folder=found.folder
    )


def _items(found: ShardSet, skipped: _Skipped) -> list[Item]:
    items = []
    for row in found.rows(["prompt", "chosen", "rejected", "source"]):
        pair, reason = _answers(row)
        if reason:
            skipped.add(reason, row["id"])
            continue
        chosen, rejected = pair
        apart = len(chosen) - len(rejected)
        length = "longer" if apart > 0 else "shorter" if apart else "same_length"
        turns, images = tuple(row["prompt"]), tuple(row["image_sha256"])
        facets = {"chosen is": "as long" if length == "same_length" else length, "source": row["source"] or NONE}
        target = {"chosen": chosen, "rejected": rejected}
        prompt = spoken(turns[-1]["content"])
        items.append(Item(row["id"], prompt, images, target, ("all", length), "choice", turns, pair, facets))
    return items


def _answers(row: Mapping[str, Any]) -> tuple[tuple[str, str], str]:
    """Chosen and rejected, or why they cannot be ranked."""
    nothing = ("", "")
    sides = [row["chosen"], row["rejected"]]
    if not row["prompt"] or row["prompt"][-1]["role"] != "user":
        return nothing, "their prompt does not end with a question"
    if any(len(side) != 1 or side[0]["role"] != "assistant" for side in sides):
        return nothing, "an answer of theirs is not one turn of the assistant"
    if any(part["type"] == "image" for side in sides for part in side[0]["content"]):
        return nothing, "an answer of theirs holds an image"
    # As training sees them: nothing is stripped.
    chosen, rejected = ("".join(part["text"] or "" for part in side[0]["content"]) for side in sides)
    if not chosen.strip() or not rejected.strip():
        return nothing, "an answer of theirs is empty"
    if chosen.strip() == rejected.strip():
        return nothing, "their two answers are the same"
    return (chosen, rejected), ""


def _score(item: Item, response: Response) -> Score:
    """Right where the chosen answer, the first of the item's choices, is the likelier."""
    found = ranking(item, response)
    counts = {"asked": 1.0, "likely": 0.0, "unread": float(found.first is None), "ties": 0.0}
    right = found.first == 0
    detail: dict[str, Any] = {}
    if found.each is not None:
        chosen, rejected = found.each
        per_token = [value / size for value, size in zip(found.each, found.tokens, strict=True)]
        right = chosen > rejected
        counts |= {
            "likely": 1.0,
            "ties": float(chosen == rejected),
            "right_per_token": float(per_token[0] > per_token[1]),
            "margin": chosen - rejected,
            "margin_per_token": per_token[0] - per_token[1],
        }
        detail = {"log_likelihoods": list(found.each), "tokens": list(found.tokens), "margin": chosen - rejected}
    counts["right"] = float(right)
    answer = {None: None, 0: "chosen", 1: "rejected"}[found.first]
    return Score(item, response.text, counts, right, "tie" if counts["ties"] else answer, detail)


def _summary(scores: Sequence[Score], skipped: _Skipped) -> dict[str, Any]:
    unread, ties = (int(sum(score.counts[name] for score in scores)) for name in ("unread", "ties"))
    unknown = len(scores) - unread - int(sum(score.counts["likely"] for score in scores))
    notes = []
    if unread:
        notes.append(f"{unread} of {len(scores)} answers do not say which of the two is likelier, and count as wrong.")
    if unknown:
        notes.append(f"{unknown} of {len(scores)} answers come without log-likelihoods: they have no margin.")
    if ties:
        notes.append(f"{ties} of {len(scores)} pairs are ties, and count as wrong.")
    return {"notes": notes, "tables": skipped.tables()}


def _share(part: str, whole: str) -> Any:
    return lambda sums: 100 * ratio(sums[part], sums[whole])


def _mean(part: str) -> Any:
    def value(sums: Sums) -> Any:
        return ratio(sums.get(part, 0.0), sums["likely"])

    return value


def _per_token(sums: Sums) -> Any:
    return 100 * ratio(sums.get("right_per_token", 0.0), sums["likely"])


_ANY = tuple(_GROUPS)

TASK = Task(
    name="preference",
    summary="Preferences: how often the better of two answers is the likelier.",
    open=_open,
    groups=_GROUPS,
    metrics=(
        Metric("accuracy", "Accuracy", _ANY, _share("right", "asked"), "asked", proportion=("right", "asked")),
        Metric("accuracy_per_token", "Acc./token", _ANY, _per_token, "likely"),
        Metric("margin", "Margin", _ANY, _mean("margin"), "likely", percent=False),
        Metric("margin_per_token", "Margin/token", _ANY, _mean("margin_per_token"), "likely", percent=False),
        Metric(
            "ties", "Ties", _ANY, _share("ties", "asked"), "asked", "low", proportion=("ties", "asked"), column="rates"
        ),
    ),
    headline=(("all", "accuracy"), ("all", "accuracy_per_token"), ("longer", "accuracy"), ("shorter", "accuracy")),
    options=(SPLIT,),
)
