"""What a loaded model computes of a batch: words, first-token probabilities, likelihoods of answers, likeliest classes.

Works on what ``vlmtrain.model.load`` gives, without importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmeval.models.first_token import first_logits, likelier, probabilities
from vlmeval.models.likelihood import log_likelihoods
from vlmeval.models.preparing import Prepared
from vlmeval.models.provenance import SAMPLING, greedy
from vlmeval.task import Response

if TYPE_CHECKING:
    import torch

__all__ = ["answered", "chosen", "free", "generate", "likeliest", "named", "placed", "rank", "reply", "seed"]

_LIKELIEST = 5


def placed(model: Any, inputs: Any) -> Any:
    """A batch on the model's device, in its type; what is no tensor stays."""
    import torch

    for name, value in inputs.items():
        if torch.is_tensor(value):
            kind = model.dtype if value.is_floating_point() else None
            inputs[name] = value.to(model.device, kind)
    return inputs


def generate(
    loaded: Any, inputs: Any, tokens: int, words: Sequence[Sequence[int]] | None = None
) -> tuple[list[str], list[list[float]] | None]:
    """Greedy answers.

    Args:
        loaded: the model and its processor.
        inputs: prompts padded on the left, ``input_ids`` ``[B, T]``.
        tokens: most new ones.
        words: first tokens of the words whose probabilities are wanted, taken from the same forward.

    Returns:
        B texts, and for each the probability of each word.
    """
    import torch

    model = loaded.model
    inputs = placed(model, inputs)
    with torch.inference_mode(), first_logits(model) as heard:
        found = model.generate(**inputs, generation_config=greedy(model.generation_config, tokens))
    new = found[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in loaded.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts, probabilities(heard[0], words) if words is not None else None


def reply(
    loaded: Any, inputs: Any, generation: Mapping[str, Any], draws: int, stream: Callable[[str], None] | None
) -> tuple[str, int]:
    """One answer, token by token where somebody listens.

    Args:
        loaded: the model and its processor.
        inputs: one prompt.
        generation: changes of the model's generation config.
        draws: seed of the draws.
        stream: told each piece of text as it comes.

    Returns:
        The text, and the number of new tokens.
    """
    import copy

    import torch
    from transformers import TextStreamer

    model, tokenizer = loaded.model, loaded.processor.tokenizer
    config = copy.deepcopy(model.generation_config)
    config.update(**{**dict.fromkeys(SAMPLING), "num_beams": 1, "max_length": None, **generation})

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if stream is not None:
                stream(text)

    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    seed(draws)
    inputs = placed(model, inputs)
    with torch.inference_mode():
        tokens = model.generate(**inputs, generation_config=config, streamer=streamer)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def seed(number: int) -> None:
    """Start the random numbers anew."""
    import torch

    torch.manual_seed(number)


def free() -> None:
    """Give back what an attempt that ran out of memory has left."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rank(
    loaded: Any, rows: Sequence[dict[str, Any]], pixels_once: Callable[..., dict[str, Any]], *, plain: bool = False
) -> list[tuple[list[float], list[int]]]:
    """How likely given answers are.

    Args:
        loaded: the model.
        rows: for each of K answers a batch ``[B, T]`` with ``completion_mask``; the first one has the pixels, too.
        pixels_once: (model, family, pixel inputs) gives what a forward takes instead of them.
        plain: run the tower for each answer, and the LM head for each token: the same, slower.

    Returns:
        For each of the B rows the log-likelihoods of its K answers and their lengths in tokens.
    """
    import torch

    model = loaded.model
    text = {key for key in rows[-1] if key in rows[0]} if len(rows) > 1 else None
    first = placed(model, rows[0])
    pixels = {key: value for key, value in first.items() if text is not None and key not in text}
    if pixels and not plain:
        net = model.get_base_model() if hasattr(model, "get_base_model") else model
        with torch.inference_mode():
            pixels = pixels_once(net, loaded.family, pixels)
    columns = []
    for row in rows:
        inputs = {**placed(model, dict(row)), **pixels}
        if pixels and not plain:
            inputs = {key: value for key, value in inputs.items() if key != "pixel_values"}
        mask = inputs.pop("completion_mask")
        columns.append(log_likelihoods(model, inputs, mask, plain=plain))
    sums = zip(*(column[0] for column in columns), strict=True)
    lengths = zip(*(column[1] for column in columns), strict=True)
    return [(list(own), list(count)) for own, count in zip(sums, lengths, strict=True)]


def likeliest(loaded: Any, inputs: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each picture with their probabilities, the likeliest first."""
    import torch

    with torch.inference_mode():
        logits = loaded.model(pixel_values=placed(loaded.model, inputs)["pixel_values"]).logits
    found = logits.float().softmax(-1).topk(min(_LIKELIEST, len(names)), dim=-1)
    rows = zip(found.values.tolist(), found.indices.tolist(), strict=True)
    return [[(names[i], p) for p, i in zip(values, indices, strict=True)] for values, indices in rows]


def answered(
    loaded: Any, prepared: Prepared, limit: int, words: Sequence[Sequence[int]] | None, how: str
) -> list[Response]:
    """Answers in words; of items with choices with the probabilities of their first tokens, or decided by them.

    Args:
        loaded: the model.
        prepared: its items agree in their choices.
        limit: most new tokens.
        words: for each choice the tokens that begin it; None where no probabilities are wanted.
        how: ``logits`` decides by the probabilities, after a single forward.
    """
    decide = words is not None and how == "logits"
    texts, shares = generate(loaded, prepared.inputs, 1 if decide else limit, words)
    pairs = zip(prepared.items, texts, strict=True)
    if shares is None:
        return [Response(item.id, text) for item, text in pairs]
    return [
        Response(
            item.id,
            likelier(item.choices, own) if decide else text,
            {"probabilities": dict(zip(item.choices, own, strict=True))},
        )
        for (item, text), own in zip(pairs, shares, strict=True)
    ]


def chosen(loaded: Any, prepared: Prepared, pixels_once: Callable[..., dict[str, Any]]) -> list[Response]:
    """The likelier of each item's choices, by number; of equal ones the first."""
    found = []
    for item, (sums, tokens) in zip(prepared.items, rank(loaded, prepared.inputs, pixels_once), strict=True):
        best = sums.index(max(sums))
        found.append(Response(item.id, str(best), {"log_likelihoods": sums, "tokens": tokens}))
    return found


def named(prepared: Prepared, likeliest: Sequence[Sequence[tuple[str, float]]]) -> list[Response]:
    """The names of the likeliest classes, one a line."""
    pairs = zip(prepared.items, likeliest, strict=True)
    return [Response(item.id, "\n".join(name for name, _ in own)) for item, own in pairs]
