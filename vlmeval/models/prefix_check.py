"""Answers given after a shared prefix beside those to the whole prompt: what ``--verify-prefix N`` tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmeval.models.first_token import first_logits, likelier, probabilities
from vlmeval.models.preparing import Prepared
from vlmeval.task import Item, Response

__all__ = ["Check", "joined", "plainly", "remarks", "spread"]

_SHOWN = 5


def spread(items: Sequence[Item], count: int) -> set[int | str]:
    """Ids of that many of the items, or of all, from all over them."""
    wanted = min(count, len(items))
    return {items[place * len(items) // wanted].id for place in range(wanted)}


class Check:
    """Compares the answers to chosen items.

    Attributes:
        wanted: ids of the items.
    """

    def __init__(self, wanted: set[int | str]) -> None:
        """Nothing is compared yet."""
        self.wanted = wanted
        self._checked, self._largest = 0, 0.0
        self._differences: list[dict[str, Any]] = []

    def compare(self, ours: Response, said: Sequence[int], plain: Response) -> None:
        """Compare two answers to one item.

        Args:
            ours: after a shared prefix.
            said: its tokens; none of one that was decided by probabilities.
            plain: of :func:`plainly`.
        """
        self._checked += 1
        shares = [list(response.detail.get("probabilities", {}).values()) for response in (ours, plain)]
        self._largest = max([self._largest, *(abs(a - b) for a, b in zip(*shares, strict=True))])
        if ours.text == plain.text:
            return
        if said:
            theirs = plain.detail["tokens"]
            pairs = zip(said, theirs, strict=False)
            at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(said), len(theirs)) - 1)
            apart = {"token": at + 1, "logits_apart": plain.detail["apart"][at]}
        else:
            high, low = sorted(shares[1], reverse=True)[:2]
            apart = {"probabilities_apart": high - low}
        self._differences.append({"id": ours.id, "shared": ours.text, "plain": plain.text, **apart})

    def to_json(self) -> dict[str, Any]:
        """Counts, the largest difference of a probability, and every answer that differs with its margin."""
        return {
            "checked": self._checked,
            "differing": len(self._differences),
            "largest_probability_difference": self._largest,
            "differences": self._differences,
        }


def plainly(
    loaded: Any, prepared: Prepared, limit: int, words: Sequence[Sequence[int]] | None, config: Any
) -> list[Response]:
    """Answers to whole prompts by ``generate``, with what tells how near another answer was.

    Args:
        loaded: the model and its processor.
        prepared: prompts padded on the left, on the model's device.
        limit: 0 decides by the probabilities, after one token.
        words: for each choice the tokens that begin it.
        config: greedy, with logits and a dictionary as its output.

    Returns:
        Responses whose detail has ``probabilities``, ``tokens``, and for each token ``apart``: by how much its logit
        exceeds the second.
    """
    import torch

    model, tokenizer = loaded.model, loaded.processor.tokenizer
    with torch.inference_mode(), first_logits(model) as heard:
        found = model.generate(**prepared.inputs, generation_config=config)
    begin = prepared.inputs["input_ids"].shape[1]
    gaps = torch.stack([step.float().topk(2).values for step in found.logits], dim=1)
    apart = (gaps[..., 0] - gaps[..., 1]).tolist()
    shares = probabilities(heard[0], words) if words is not None else None
    said = []
    for row, item in enumerate(prepared.items):
        tokens = found.sequences[row, begin:].tolist()
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        detail: dict[str, Any] = {"tokens": tokens, "apart": apart[row]}
        if shares is not None:
            detail["probabilities"] = dict(zip(item.choices, shares[row], strict=True))
            text = text if limit else likelier(item.choices, shares[row])
        said.append(Response(item.id, text, detail))
    return said


def joined(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first process's environment, with what all of them compared; each has its part of the chosen items.

    Args:
        environments: of ``Model.environment``, in the order of the processes.
    """
    found = dict(environments[0])
    checks = [each.get("share_prefix", {}).get("verified") for each in environments]
    if len(checks) > 1 and all(checks):
        all_of = {
            "checked": sum(check["checked"] for check in checks),
            "differing": sum(check["differing"] for check in checks),
            "largest_probability_difference": max(check["largest_probability_difference"] for check in checks),
            "differences": [one for check in checks for one in check["differences"]],
        }
        found["share_prefix"] = {**found["share_prefix"], "verified": all_of}
    return found


def remarks(source: Mapping[str, Any]) -> list[str]:
    """What a reader of the report must be told, from the ``share_prefix`` of where its answers come from."""
    found = source.get("share_prefix") or {}
    check = found.get("verified")
    if check is None:
        return []
    if not check["checked"]:
        why = found.get("reason") or "no item that shares its image was asked"
        return [f"Nothing was answered a second time to compare shared images: {why}."]
    begun = (
        f"{check['checked']} {'question was' if check['checked'] == 1 else 'questions were'} answered a second time, "
        "with the image read anew instead of once for all its questions"
    )
    if not check["differing"]:
        return [f"{begun}: every answer is the same."]
    shown = [_said(one) for one in check["differences"][:_SHOWN]]
    more = f"; {check['differing'] - _SHOWN} more" if check["differing"] > _SHOWN else ""
    differ = "1 answer differs" if check["differing"] == 1 else f"{check['differing']} answers differ"
    return [f"{begun}: {differ}: {'; '.join(shown)}{more}. Off: --set share_prefix=no."]


def _said(one: Mapping[str, Any]) -> str:
    if "token" in one:
        near = f"at token {one['token']} the two likeliest are {one['logits_apart']:.2g} apart in logits"
    else:
        near = f"the probabilities are {one['probabilities_apart']:.2g} apart"
    return f"item {one['id']} {one['shared']!r} instead of {one['plain']!r} ({near})"
