"""Which tokens supervised fine-tuning learns, and how much each row counts.

``train_on`` is ``assistant`` (every answer with its end token), ``completion`` (the last answer alone) or ``all``
(everything but padding, images and the tokens that frame them). With ``weight_by`` the loss of an optimizer step is

    sum_i w_i * nll_i / sum_i w_i * n_i

over its rows i, where nll_i is the sum of the row's token losses and n_i their number: equal weights give the plain
loss, and a row of weight 0 is as if it were not there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vlmtrain.collate import Collator, answer_mask
from vlmtrain.config import Config
from vlmtrain.family import Family
from vlmtrain.keys import Supervision
from vlmtrain.lengths import Refusal
from vlmtrain.unpaired import check_questions
from vlmtrain.weights import read_labels, read_weights, weight_of

__all__ = ["SupervisedCollator", "image_token_ids", "refusal"]

_IMAGE_WORDS = re.compile("image|img|vision|video", re.IGNORECASE)


class SupervisedCollator(Collator):
    """Rows of messages shards to SFT batches; ``weight`` ``[B]`` comes along where rows have weights.

    Weights are divided by the heaviest one, which changes no loss and makes equal ones exactly 1.
    """

    def __init__(self, processor: Any, family: Family, supervision: Supervision, heaviest: float = 1.0) -> None:
        """Take the processor as it is to be used, and the weight of the heaviest row."""
        super().__init__(processor, family)
        self.train_on, self.weight_by, self.heaviest = supervision.train_on, supervision.weight_by, heaviest

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch; the rows' images are decoded here."""
        batch = super().__call__(rows)
        if self.weight_by is not None:
            batch["weight"] = torch.tensor([weight_of(row, self.weight_by) / self.heaviest for row in rows])
        return batch

    def supervised(self, batch: dict[str, Any], answers: Sequence[Sequence[tuple[int, int]]]) -> torch.Tensor:
        """Which tokens are learned, ``[B, T]``; takes the offsets out of the batch."""
        if self.train_on == "completion":
            return super().supervised(batch, [spans[-1:] for spans in answers])
        if self.train_on == "assistant":
            return super().supervised(batch, answers)
        pictures = self._pictures(batch)
        super().supervised(batch, answers)
        text: torch.Tensor = batch["attention_mask"].bool() & ~pictures
        return text

    def _pictures(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Tokens that stand for images or frame them: what placeholders became, and special tokens named so."""
        names = image_token_ids(self.processor.tokenizer)
        found = torch.isin(batch["input_ids"], torch.tensor(sorted(names), dtype=torch.long))
        replaced = batch.get("text_replacement_offsets")
        if replaced:
            spans = [[entry["new_span"] for entry in row if entry["type"] == "image"] for row in replaced]
            found |= answer_mask({"offset_mapping": batch["offset_mapping"]}, spans)
        return found


@functools.lru_cache(maxsize=16)
def image_token_ids(tokenizer: Any) -> frozenset[int]:
    """Added tokens whose name says that they stand for images."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(number for number, token in added if _IMAGE_WORDS.search(str(token)))


def refusal(config: Config, data: Sequence[Any]) -> Refusal | None:
    """Look at what the rows' ``meta`` says of them; gives what tells the rows that the method cannot use.

    Args:
        config: of the run.
        data: the datasets it opened, to train and to evaluate on.

    Returns:
        A function of a row: None, or why it is left out and the detail.

    Raises:
        DataError: rows without a weight or a label, the first of them named; or rows that all ask the same where
            they need partners.
    """
    supervision, unpaired = config.supervision, config.unpaired
    key = supervision.weight_by if supervision is not None else None
    label = unpaired.label_by if unpaired is not None else None
    if unpaired is not None and unpaired.loss_type == "kto":
        check_questions(data[0])
    for rows in data:
        if key is not None:
            read_weights(rows, key)
        if label is not None:
            read_labels(rows, label)
    if supervision is None and label is None:
        return None
    speechless = supervision is not None and supervision.train_on == "all"

    def refuse(row: Mapping[str, Any]) -> tuple[str, str] | None:
        if not (speechless or any(turn["role"] == "assistant" for turn in row["messages"])):
            return "no_answer", "no turn of the assistant"
        if label is not None and row["messages"][-1]["role"] != "assistant":
            return "no_answer", "the last turn is not the assistant's"
        if key is not None and not weight_of(row, key):
            return "weight_zero", f"its {key} is 0"
        return None

    return refuse
