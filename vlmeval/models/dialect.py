"""How a server wants to be asked: the body of a chat completion request, in the parameters it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import DataError
from vlmeval.task import Item

__all__ = ["Dialect", "SEED", "messages"]

SEED = 0

_NOT_TAKEN = re.compile(r"unsupported|not support|unexpected|unknown|unrecogni[sz]ed|extra|not permitted|not allowed")
_FEWER = {20: 10, 10: 5}


@dataclass(slots=True)
class Dialect:
    """Parameters of a server, learnt from what it refuses.

    Attributes:
        limit: what it calls the limit of new tokens. OpenAI's newer models refuse ``max_tokens``, older servers do not
            know ``max_completion_tokens``.
        temperature: whether it takes temperature 0; OpenAI's reasoning models do not.
        seed: whether it takes a seed.
        top_logprobs: how many likely tokens it tells; OpenAI's limit is 20, vLLM's default too.
    """

    limit: str = "max_tokens"
    temperature: bool = True
    seed: bool = True
    top_logprobs: int = 20

    def body(
        self, model: str | None, turns: Sequence[Mapping[str, Any]], new_tokens: int, *, logprobs: bool
    ) -> dict[str, Any]:
        """The request for one answer."""
        body: dict[str, Any] = {"model": model, "messages": list(turns), self.limit: new_tokens}
        if self.temperature:
            body["temperature"] = 0
        if self.seed:
            body["seed"] = SEED
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body

    def adapt(self, refusal: str) -> bool:
        """Learn from what a refusal names; whether it makes sense to ask again."""
        said = refusal.lower()
        not_taken = _NOT_TAKEN.search(said) is not None
        if not_taken and "max_tokens" in said and self.limit == "max_tokens":
            self.limit = "max_completion_tokens"
        elif not_taken and "temperature" in said and self.temperature:
            self.temperature = False
        elif not_taken and "seed" in said and self.seed:
            self.seed = False
        elif not not_taken and "logprobs" in said and self.top_logprobs in _FEWER:
            self.top_logprobs = _FEWER[self.top_logprobs]
        else:
            return False
        return True

    def describe(self, *, logprobs: bool) -> dict[str, Any]:
        """What of it can change an answer."""
        known: dict[str, Any] = {
            "decoding": "greedy" if self.temperature else "the server's own: it takes no temperature",
            "seed": SEED if self.seed else None,
        }
        return {**known, "top_logprobs": self.top_logprobs} if logprobs else known


def messages(item: Item, url: Callable[[str], str], suffix: str) -> list[dict[str, Any]]:
    """An item's turns as OpenAI's messages.

    Args:
        item: what is asked.
        url: gives an image's data URL by its name.
        suffix: goes below the last turn's text.

    Returns:
        Turns without an image hold a text, the others a list of parts in which no two texts follow each other: servers
        differ in how they join them.

    Raises:
        DataError: the turns show more or fewer images than the item names, or one cannot be shown.
        MissingError: an image is not there.
    """
    turns: Sequence[Mapping[str, Any]] = item.turns
    if not turns:
        pictures = [{"type": "image", "text": None} for _ in item.images]
        turns = [{"role": "user", "content": [*pictures, {"type": "text", "text": item.prompt}]}]
    if suffix:
        last = turns[-1]
        turns = [*turns[:-1], {**last, "content": [*last["content"], {"type": "text", "text": f"\n{suffix}"}]}]
    shown = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if shown != len(item.images):
        raise DataError(f"images do not fit the turns: {len(item.images)} are named and {shown} are shown")
    names = iter(item.images)
    return [{"role": turn["role"], "content": _content(turn["content"], names, url)} for turn in turns]


def _content(content: Sequence[Mapping[str, Any]], names: Any, url: Callable[[str], str]) -> str | list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "image":
            parts.append({"type": "image_url", "image_url": {"url": url(next(names))}})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += part["text"] or ""
        else:
            parts.append({"type": "text", "text": part["text"] or ""})
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return [part for part in parts if part["type"] != "text" or part["text"]]
