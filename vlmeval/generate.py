"""Talk to a model: a caption, an answer, or a chat whose earlier turns are context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, MissingError
from vlmeval.metrics.json_answer import cut_json

if TYPE_CHECKING:
    from vlmeval.models.local import Local

__all__ = ["Reply", "Sampling", "chat"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: share of probability that is drawn from; 1 is all.
        top_k: number of tokens that are drawn from; 0 is all.
        min_p: least probability, as a share of the likeliest token's.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of its range, or has no effect because decoding is greedy.
        """
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is at least 1, got {self.max_new_tokens}")
        bounds = (("temperature", 0, 100), ("top_p", 0.001, 1), ("min_p", 0, 1), ("top_k", 0, 10**9))
        for name, least, most in bounds:
            value = getattr(self, name)
            if not least <= value <= most:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value:g}, expected from {least:g} to {most:g}")
        if not self.temperature and (self.top_p, self.top_k, self.min_p) != (1.0, 0, 0.0):
            raise ConfigError("--top-p, --top-k and --min-p choose among draws: give a --temperature above 0")

    def keywords(self) -> dict[str, Any]:
        """For a transformers generation config."""
        if not self.temperature:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or None,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a chat.

    Attributes:
        text: what was said.
        json: the object in it, where there is one.
        tokens: new tokens, the end token counted.
        seconds: from the prompt to the last token, image processing counted.
    """

    text: str
    json: dict[str, Any] | None
    tokens: int
    seconds: float


def chat(
    model: Local,
    images: Sequence[str | Path],
    prompts: Iterable[str],
    sampling: Sampling,
    *,
    stream: Callable[[str], None] | None = None,
) -> Iterator[Reply]:
    """Ask one thing after the other about the same images; every answer becomes context of the next.

    Args:
        model: loaded on the first question.
        images: shown with the first prompt, before its text.
        prompts: user turns in order; an empty one is the images alone, so a caption.
        sampling: how tokens are chosen.
        stream: told each piece of text as it comes.

    Raises:
        ConfigError: nothing to answer.
        MissingError: an image is not there.
    """
    if isinstance(prompts, Sequence) and not any(prompt.strip() for prompt in prompts):
        if not images:
            raise ConfigError("nothing to answer: give --image, --prompt or both")
        prompts = [""]
    for path in images:
        if not Path(path).is_file():
            raise MissingError(f"no image {path}")
    model.load()
    shown = [str(Path(path).resolve()) for path in images]
    turns: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        parts: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in shown] if not number else []
        turns.append({"role": "user", "content": [*parts, *([{"type": "text", "text": prompt}] if prompt else [])]})
        started = time.perf_counter()
        text, tokens = model.reply(turns, shown, sampling.keywords(), sampling.seed + number, stream)
        yield Reply(text, cut_json(text), tokens, time.perf_counter() - started)
        turns.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
