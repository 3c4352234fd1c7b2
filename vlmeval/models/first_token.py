"""First-token probabilities: how likely a model is to begin its answer with one of a few words.

A word can begin with several tokens: as training writes it after the generation prompt, in other cases, with and
without the space that many tokenizers keep at the front of a word. The probability of a word is the sum over all of
them, of the softmax over the whole vocabulary; what other tokens have is nobody's. A token that could begin two of the
words belongs to the one that training begins with it, or to none of them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["first_logits", "likelier", "probabilities", "spellings"]

_BEFORE = ("", " ", "\n")


def spellings(tokenizer: Any, words: Sequence[str], trained: Sequence[int]) -> list[list[int]]:
    """The tokens that begin each word.

    Args:
        tokenizer: a fast tokenizer.
        words: W words that are to be told apart.
        trained: for each of them its first token as training writes it after the generation prompt.

    Returns:
        For each word its tokens, sorted, its own of ``trained`` among them; no token is in two lists.

    Raises:
        ConfigError: two words begin with the same token after the generation prompt.
    """
    for place, token in enumerate(trained):
        if token in trained[:place]:
            other = words[list(trained).index(token)]
            raise ConfigError(
                f"first-token probabilities cannot tell {other!r} from {words[place]!r}: with this tokenizer both "
                f"begin with the token {tokenizer.convert_ids_to_tokens(token)!r}; use --answers generate"
            )
    # Words that differ in their case alone are told apart by it.
    by_case = len({word.casefold() for word in words}) == len(words)
    found = [_beginnings(tokenizer, word, by_case) - set(trained) for word in words]
    owners = Counter(token for tokens in found for token in tokens)
    return [
        sorted({own, *(token for token in tokens if owners[token] == 1)})
        for tokens, own in zip(found, trained, strict=True)
    ]


def _beginnings(tokenizer: Any, word: str, by_case: bool) -> set[int]:
    """First tokens of a word's spellings, white space left out, whose text is the beginning of the word."""
    cases = {word, word.lower(), word.upper(), word.capitalize()} if by_case else {word}
    tokens: set[int] = set()
    for spelling in (before + case for case in sorted(cases) for before in _BEFORE):
        for token in tokenizer(spelling, add_special_tokens=False)["input_ids"]:
            text = tokenizer.decode([token], skip_special_tokens=True).strip()
            if text:
                if spelling.strip().startswith(text):
                    tokens.add(token)
                break
    return tokens


@contextlib.contextmanager
def first_logits(model: Any) -> Iterator[list[torch.Tensor]]:
    """Listen to a model that generates inside: the list gets what its first forward says of the next token, ``[B, V]``.

    These are the model's own logits, before any penalty of its generation config.
    """
    from transformers import GenerationMixin

    heard: dict[int, torch.Tensor] = {}
    found: list[torch.Tensor] = []
    # Of BLIP-2 the language model inside it generates; else the outermost one.
    speakers = [module for module in model.modules() if isinstance(module, GenerationMixin)]

    def listen(place: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            if place not in heard and getattr(output, "logits", None) is not None:
                heard[place] = output.logits[:, -1].detach().float()

        return hook

    handles = [speaker.register_forward_hook(listen(place)) for place, speaker in enumerate(speakers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        if heard:
            found.append(heard[min(heard)])


def probabilities(logits: torch.Tensor, tokens: Sequence[Sequence[int]]) -> list[list[float]]:
    """The probability of each word.

    Args:
        logits: ``[B, V]``.
        tokens: for each of W words the tokens that begin it.

    Returns:
        B lists of W numbers between 0 and 1, together at most 1.
    """
    import torch

    shares = logits.float().softmax(-1)
    return torch.stack([shares[:, list(own)].sum(-1) for own in tokens], dim=1).tolist()


def likelier(words: Sequence[str], shares: Sequence[float]) -> str:
    """The word of the highest probability; of equal ones the first."""
    return words[max(range(len(words)), key=lambda place: shares[place])]
