"""Answers of a model in the middle of its training, which goes on as if nobody had asked.

Prompts, decoding and reading are those of ``vlmeval``'s local models: the same weights answer the same. The random
state and the mode of every module are as before afterwards, no graph is made, and the weights are not touched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vlmdata.errors import ConfigError, DataError
from vlmtrain import distributed
from vlmtrain.collate import decode, prompt_batch
from vlmtrain.weights import read_labels

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmtrain.job import Job

__all__ = ["Asker", "Prompt", "askable", "prompts_of", "undisturbed"]

Turns = Sequence[Mapping[str, Any]]
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to ask.

    Attributes:
        id: of the row or item.
        turns: in shard form, the last one a user's.
        text: of the last turn.
        reference: the right answer.
        pictures: reads the images of the turns, in order.
    """

    id: str
    turns: Turns
    text: str
    reference: str
    pictures: Callable[[], list[Image]]


def askable(job: Job) -> list[int]:
    """Places of the held-out rows whose own answer is right: all but those that a label calls bad.

    Raises:
        ConfigError: there is none.
    """
    total = len(job.eval_rows)
    key = job.config.unpaired.label_by if job.config.unpaired is not None else None
    good = read_labels(job.eval_rows, key) if key else [True] * total
    found = [place for place in range(total) if good[place]]
    if not found:
        raise ConfigError(f"sample_steps and eval_metric need held-out rows with a good answer: {key} calls none good")
    return found


def prompts_of(rows: Any, numbers: Sequence[int]) -> list[Prompt | None]:
    """What rows ask, and the answer that is right: their last one, or the chosen one; None for a row without an answer.

    Args:
        rows: a dataset of messages or of preferences.
        numbers: places in it.
    """
    plain = rows.remove_columns(["images"])
    return [_prompt(plain[number], rows, number) for number in numbers]


def _prompt(row: Mapping[str, Any], rows: Any, number: int) -> Prompt | None:
    turns = row["messages"] if "messages" in row else [*row["prompt"], *row["chosen"]]
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if not last:
        return None
    before, said = turns[:last], turns[last]
    places = sum(part["type"] == "image" for turn in before for part in turn["content"])

    def pictures() -> list[Image]:
        return decode(rows[number])[:places]

    return Prompt(str(row["id"]), before, _text(before[-1]), _text(said), pictures)


def _text(turn: Mapping[str, Any]) -> str:
    return "\n".join(part["text"] for part in turn["content"] if part["type"] == "text" and part["text"]).strip()


class Asker:
    """Asks the model of a trainer."""

    def __init__(self, trainer: Any, job: Job) -> None:
        """Take them; the whole model must be in each process."""
        self.trainer, self.job = trainer, job

    def answers(
        self,
        prompts: Sequence[Prompt],
        tokens: int,
        *,
        temperature: float = 0.0,
        min_p: float = 0.0,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> list[str | None]:
        """Answers to all prompts, in all processes; None where a picture cannot be read and ``on_bad_row`` is skip.

        Args:
            prompts: what is asked; each process answers its share.
            tokens: longest answer.
            temperature: 0 takes the likeliest token.
            min_p: least likely token that is drawn, against the likeliest.
            seed: of the draws.
            batch_size: prompts per call; None is that of training.

        Raises:
            DataError: a picture cannot be read and that is to be an error.
        """
        size = batch_size or self.job.config.training.batch_size
        world, rank = distributed.world(), distributed.rank()
        mine = list(range(rank, len(prompts), world))
        found: dict[int, str | None] = {}
        with undisturbed(self.trainer.model, seed + rank):
            # Prompts of like length share a batch.
            mine.sort(key=lambda place: len(prompts[place].text))
            for start in range(0, len(mine), size):
                opened = {place: self._shown(prompts[place]) for place in mine[start : start + size]}
                shown = {place: pictures for place, pictures in opened.items() if pictures is not None}
                batch = [prompts[place] for place in shown]
                texts = self._generate(batch, list(shown.values()), tokens, temperature, min_p)
                found |= dict(zip(shown, texts, strict=True))
        for share in distributed.gathered(found):
            found |= share
        return [found.get(place) for place in range(len(prompts))]

    def _shown(self, prompt: Prompt) -> list[Image] | None:
        try:
            return prompt.pictures()
        except DataError:
            if self.job.config.rows.on_bad_row == "fail":
                raise
            return None

    def _generate(
        self, prompts: Sequence[Prompt], images: Sequence[list[Image]], tokens: int, temperature: float, min_p: float
    ) -> list[str]:
        if not prompts:
            return []
        loaded, accelerator = self.job.loaded, self.trainer.accelerator
        model = accelerator.unwrap_model(self.trainer.model)
        inputs = prompt_batch(loaded.processor, loaded.family, [prompt.turns for prompt in prompts], images)
        inputs = inputs.to(model.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(model.dtype)
        config = copy.deepcopy(model.generation_config)
        how: dict[str, Any] = {"num_beams": 1, "max_length": None, "max_new_tokens": tokens, "do_sample": False}
        if temperature:
            how |= {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0, "min_p": min_p or None}
        config.update(**{**dict.fromkeys(_SAMPLING), **how})
        with torch.no_grad(), accelerator.autocast():
            found = model.generate(**inputs, generation_config=config)
        new = found[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in loaded.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


@contextlib.contextmanager
def undisturbed(model: Any, seed: int = 0) -> Iterator[None]:
    """A model in evaluation mode with random numbers of its own; everything is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
