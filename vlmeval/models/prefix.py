"""An image and the text before it read once, its keys and values the beginning of every question on it.

A causal model's keys and values of a token depend on what stands before it alone, so those of [text, image] are the
same whatever is asked afterwards. They are computed by one forward of a single row, copied for the rows of a batch, and
the questions follow as a batch of their own: padded on the left, so that the last column is every row's last token.
Prefixes of several images in one batch are padded on the left, too; the mask hides both holes, positions are given.

The decoding is ``GenerationMixin._sample`` of transformers 5.23 without sampling: the likeliest token by the logits in
32 bits, until a stop token. Whatever else a generation config can ask for is an obstacle (:func:`obstacle`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmeval.models.provenance import decoding

if TYPE_CHECKING:
    import torch

__all__ = ["Prefix", "Prefixes", "follow", "image_token", "obstacle", "read"]

# What a row of a batch has for each of its tokens; all else belongs to the pixels.
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_READ_OFF = ("offset_mapping", "text_replacement_offsets")

Positions = Callable[[Any, Mapping[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model has kept of the beginning of a row.

    Attributes:
        layers: keys and values of each layer, ``[1, H, P, D]``.
        tokens: P.
        following: the position of the token after it; less than P where an image takes fewer positions than tokens.
    """

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    tokens: int
    following: int


class Prefixes:
    """The prefixes used last.

    Attributes:
        capacity: how many are kept.
        made: how many were read so far, those that were read again included.
        tokens: of all of these.
    """

    def __init__(self, capacity: int) -> None:
        """None is kept yet."""
        self.capacity, self.made, self.tokens = capacity, 0, 0
        self._kept: OrderedDict[Hashable, Prefix] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Prefix]) -> Prefix:
        """The prefix of that key, read unless it is kept."""
        if key not in self._kept:
            while len(self._kept) >= self.capacity:
                self._kept.popitem(last=False)
            self._kept[key] = made = make()
            self.made += 1
            self.tokens += made.tokens
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Keep none."""
        self._kept.clear()


def obstacle(model: Any) -> str | None:
    """Why answers cannot follow a prefix that was read before, in a few words; None where they can.

    Args:
        model: a transformers model or a ``PeftModel``.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    more = sorted(decoding(model.generation_config).keys() - {"eos_token_id"})
    if more:
        return f"its generation config has more than greedy decoding: {', '.join(more)}"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter puts tokens of its own in front"
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if not layers <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return "its layers keep more than keys and values"
    if image_token(model) is None:
        return "its config names no image token"
    return None


def image_token(model: Any) -> int | None:
    """The token that stands for a piece of an image."""
    found = (getattr(model.config, name, None) for name in ("image_token_id", "image_token_index"))
    return next((int(token) for token in found if token is not None), None)


def read(
    model: Any, row: Mapping[str, torch.Tensor], seen: Mapping[str, Any], length: int, positions: Positions | None
) -> Prefix:
    """Read the first tokens of a row, with all of its images.

    Args:
        model: a transformers model or a ``PeftModel``.
        row: ``input_ids`` ``[1, T]`` and what else there is for each token.
        seen: the encoding that has the pixels.
        length: P, up to the last image token at least.
        positions: of the family, where it does not number the tokens.
    """
    import torch
    from transformers import DynamicCache

    given = {key: row[key][:, :length] for key in _OF_TOKENS if key in row}
    pixels = {key: value for key, value in seen.items() if key not in (*_OF_TOKENS, *_READ_OFF)}
    inputs = {key: _placed(model, value) for key, value in {**given, **pixels}.items()}
    place = torch.arange(length, device=model.device)[None]
    if positions is not None:
        net = model.get_base_model() if hasattr(model, "get_base_model") else model
        place = positions(net, inputs)
    cache = DynamicCache()
    with torch.inference_mode():
        model(**inputs, position_ids=place, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return Prefix(layers, length, int(place.max()) + 1)


def follow(
    model: Any,
    prefixes: Sequence[Prefix],
    rests: Sequence[torch.Tensor],
    limit: int,
    stops: Collection[int],
    axes: int,
) -> tuple[list[list[int]], torch.Tensor]:
    """Greedy answers to what follows prefixes; they stay as they are.

    Args:
        model: a transformers model or a ``PeftModel``.
        prefixes: of B rows, the same object for rows that share it.
        rests: token ids of each row after its prefix, ``[S]`` each, without images.
        limit: most new tokens.
        stops: tokens that end an answer.
        axes: of a position: 1, or 3 where the family's positions have time, height and width.

    Returns:
        The tokens of each answer, a stop token included, and the logits of the first, ``[B, V]`` in 32 bits.
    """
    import torch

    longest, width = max(prefix.tokens for prefix in prefixes), max(len(rest) for rest in rests)
    ids = torch.zeros(len(rests), width, dtype=torch.long)
    mask = torch.zeros(len(rests), longest + width, dtype=torch.long)
    place = torch.zeros(len(rests), width, dtype=torch.long)
    for row, (prefix, rest) in enumerate(zip(prefixes, rests, strict=True)):
        ids[row, width - len(rest) :] = rest
        mask[row, longest - prefix.tokens : longest] = 1
        mask[row, longest + width - len(rest) :] = 1
        place[row, width - len(rest) :] = prefix.following + torch.arange(len(rest))
    ids, mask, place = (value.to(model.device) for value in (ids, mask, place))
    said: list[list[int]] = [[] for _ in rests]
    speaking = set(range(len(rests)))
    with torch.inference_mode():
        cache, first = _joined(prefixes, longest), None
        while True:
            along = place if axes == 1 else place.expand(axes, *place.shape)
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": along, "past_key_values": cache}
            logits = model(**given, use_cache=True, logits_to_keep=1).logits[:, -1].float()
            first = logits if first is None else first
            new = logits.argmax(-1)
            for row, token in enumerate(new.tolist()):
                if row in speaking:
                    said[row].append(token)
                    if token in stops or len(said[row]) == limit:
                        speaking.remove(row)
            if not speaking:
                return said, first
            ids, place = new[:, None].to(ids.device), place[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rests), 1)], dim=1)


def _joined(prefixes: Sequence[Prefix], longest: int) -> Any:
    """One cache ``[B, H, longest, D]`` for the rows of a batch."""
    from transformers import DynamicCache

    rows = len(prefixes)
    if all(prefix is prefixes[0] for prefix in prefixes):
        # A view: the first update joins it to the new tokens, which is the only copy.
        data = [(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)) for keys, values in prefixes[0].layers]
        return DynamicCache(data)

    def padded(layer: int, side: int) -> torch.Tensor:
        one = prefixes[0].layers[layer][side]
        filled = one.new_zeros(rows, one.shape[1], longest, one.shape[3])
        for row, prefix in enumerate(prefixes):
            filled[row, :, longest - prefix.tokens :] = prefix.layers[layer][side][0]
        return filled

    return DynamicCache([(padded(layer, 0), padded(layer, 1)) for layer in range(len(prefixes[0].layers))])


def _placed(model: Any, value: Any) -> Any:
    import torch

    if not torch.is_tensor(value):
        return value
    return value.to(model.device, model.dtype if value.is_floating_point() else None)
