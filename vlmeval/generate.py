"""Talk to models: a caption, an answer, or a chat whose earlier turns are context; one model or several."""

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

__all__ = ["Conversation", "Reply", "Sampling", "asked", "chat"]


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
        repetition_penalty: divides the logits of tokens that were there before; 1 is none, None the model's own.
        sample: answers to each prompt, each drawn anew.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float | None = None
    sample: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: one is out of its range, or has no effect because decoding is greedy.
        """
        for name in ("max_new_tokens", "sample"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is at least 1, got {getattr(self, name)}")
        bounds = [("temperature", 0, 100), ("top_p", 0.001, 1), ("min_p", 0, 1), ("top_k", 0, 10**9)]
        for name, least, most in [*bounds, ("repetition_penalty", 0.1, 10)]:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is {value:g}, expected from {least:g} to {most:g}")
        if not self.temperature and (self.top_p, self.top_k, self.min_p) != (1.0, 0, 0.0):
            raise ConfigError("--top-p, --top-k and --min-p choose among draws: give a --temperature above 0")
        if not self.temperature and self.sample > 1:
            raise ConfigError(f"--sample {self.sample} draws answers: give a --temperature above 0")

    def keywords(self) -> dict[str, Any]:
        """For a transformers generation config."""
        how: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.temperature > 0}
        if self.repetition_penalty is not None:
            how["repetition_penalty"] = self.repetition_penalty
        if self.temperature:
            how |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
            how |= {"min_p": self.min_p or None}
        return how


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


class Conversation:
    """What was said to one model, and what it answered."""

    def __init__(self, model: Local, images: Sequence[str | Path], sampling: Sampling) -> None:
        """Begin.

        Args:
            model: loaded on the first question.
            images: shown with the first prompt, before its text.
            sampling: how tokens are chosen.
        """
        self.model, self.sampling = model, sampling
        self._shown = [str(Path(path).resolve()) for path in images]
        self._turns: list[dict[str, Any]] = []
        self._number = 0

    def ask(self, prompt: str, stream: Callable[[int, str], None] | None = None) -> list[Reply]:
        """Answers to one more turn, as many as are drawn; the first of them becomes context of the next.

        Args:
            prompt: the user's turn; empty it is the images alone.
            stream: told the number of the answer and each piece of its text as it comes.
        """
        self.model.load()
        parts: list[dict[str, Any]] = [] if self._turns else [{"type": "image", "text": None} for _ in self._shown]
        text = [{"type": "text", "text": prompt}] if prompt else []
        self._turns.append({"role": "user", "content": [*parts, *text]})
        replies = []
        for place in range(self.sampling.sample):
            piece = None if stream is None else lambda words, place=place: stream(place, words)
            started = time.perf_counter()
            seed = self.sampling.seed + self._number
            said, tokens = self.model.reply(self._turns, self._shown, self.sampling.keywords(), seed, piece)
            replies.append(Reply(said, cut_json(said), tokens, time.perf_counter() - started))
            self._number += 1
        self._turns.append({"role": "assistant", "content": [{"type": "text", "text": replies[0].text}]})
        return replies


def asked(images: Sequence[str | Path], prompts: Iterable[str]) -> Iterable[str]:
    """The turns of a chat, checked: no prompt at all is the images alone, so a caption.

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
    return prompts


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
    turns = asked(images, prompts)
    conversation = Conversation(model, images, sampling)
    for prompt in turns:
        yield from conversation.ask(prompt, None if stream is None else lambda place, words: stream(words))
