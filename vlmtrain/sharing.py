"""Rows that begin alike as one: what they have in common once, what each goes on with as a branch of it.

Paper: Wang and Hegde, Accelerating Direct Preference Optimization with Prefix Sharing,
https://arxiv.org/abs/2410.20305. Its rows are packed for kernels that skip blocks of the mask; here a group of rows is
one row with a mask of its own, which every attention that takes a mask can read.

A folded row is [common | rest of the first | rest of the second | ...]. A token sees what stands before it in its own
row and nothing else, and has the position it has there, so its hidden state is the one it had before: loss and
gradients are the same. ``fold`` says where each token of the folded rows comes from, ``unfold`` where each token of the
rows has gone. Where the attention knows of it (``vlmtrain.lean.branch_attention``), all folded rows lie end to end in
one, without padding; a row that shares nothing is one of them, too, so that this is packing as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "Branch",
    "Group",
    "Layout",
    "Share",
    "fold",
    "fold_flat",
    "gathered",
    "positions",
    "segment_mask",
    "tokens_of",
]

Branch = int | tuple[int, ...]
"""Tokens of a branch; of one that forks again, those before the fork, then those of each of its ends."""
Layout = tuple[tuple[int, tuple[Branch, ...]], ...]
"""Of each group of rows laid end to end: tokens of what they have in common, then each branch that has any."""
Group = Sequence[int | Sequence[int]]
"""Rows that begin alike, some of them together as a fork."""


@dataclass(frozen=True, slots=True)
class Share:
    """What collators ask for: how the rows of a batch fold up.

    Attributes:
        longest: most tokens of a row; a batch with a longer one is not folded. None is no limit.
        flat: lay all groups end to end, for an attention that reads a :data:`Layout`.
        beginnings: rows on the same images share what they have in common.
        packs: a batch where no rows share anything is laid end to end, too; needs ``flat``.
    """

    longest: int | None = None
    flat: bool = False
    beginnings: bool = True
    packs: bool = False

    def __call__(
        self, rows: Mapping[str, Any], groups: Sequence[Group], images: Sequence[int]
    ) -> dict[str, dict[str, Any]]:
        """``{"sharing": ...}`` of a batch, for :func:`vlmtrain.lean.folded.folded_inputs`; empty if it is not folded.

        Args:
            rows: ``input_ids`` and ``attention_mask`` ``[R, T]``, padded on the right.
            groups: row numbers of each group; with ``flat`` some of them may be forks (:func:`fold_flat`).
            images: how many images each group shows, all of them in what its rows have in common.
        """
        lengths = rows["attention_mask"].sum(1).tolist()
        if self.longest is not None and max(lengths) > self.longest:
            return {}
        starts = np.concatenate([[0], np.cumsum(images)])
        of_row: dict[int, range] = {
            row: range(starts[number], starts[number + 1])
            for number, group in enumerate(groups)
            for row in _members(group)
        }
        shown = [image for row in range(len(lengths)) for image in of_row[row]]
        how: dict[str, Any]
        if self.flat:
            how = fold_flat(rows["input_ids"], lengths, groups)
        else:
            how = {**fold(rows["input_ids"], lengths, [_members(group) for group in groups])}
        if how["fold"].numel() == rows["input_ids"].numel():
            return {}
        return {"sharing": {**how, "images": torch.tensor(shown).long()}}


def fold_flat(ids: torch.Tensor, lengths: Sequence[int], groups: Sequence[Group]) -> dict[str, Any]:
    """How rows fold up into one: groups end to end, without padding.

    Args:
        ids: ``[R, T]`` token ids, padded on the right.
        lengths: tokens of each row.
        groups: as :func:`fold` takes them, but that a group may have forks in it, rows that have more in common with
            each other than with the others: what that is is there once, too.

    Returns:
        ``fold`` ``[1, L]``: index into the R * T tokens; ``layout``: a :data:`Layout`; ``unfold`` ``[R, T]``: index
        into the L tokens, of padding to the first of the group.
    """
    rows, width = ids.shape
    token = ids.numpy()
    folded: list[np.ndarray[Any, Any]] = []
    unfold = np.zeros((rows, width), np.int64)
    layout: list[tuple[int, tuple[Branch, ...]]] = []
    place = 0

    def put(row: int, begin: int, end: int, owners: Sequence[int]) -> int:
        """Lay tokens of a row behind what lies there; of those rows it is where they are found."""
        nonlocal place
        folded.append(row * width + np.arange(begin, end))
        for owner in owners:
            unfold[owner, begin:end] = place + np.arange(end - begin)
        place += end - begin
        return end - begin

    for group in groups:
        forks, members = [[entry] if isinstance(entry, int) else entry for entry in group], _members(group)
        begin = _common([token[row, : lengths[row]] for row in members])
        unfold[members] = place
        put(members[0], 0, begin, members)
        branches: list[Branch] = []
        for fork in forks:
            inner = _common([token[row, : lengths[row]] for row in fork]) if len(fork) > 1 else begin
            head = put(fork[0], begin, inner, fork)
            ends = [put(row, inner, lengths[row], [row]) for row in fork]
            branches += [(head, *ends)] if head else [end for end in ends if end]
        layout.append((begin, tuple(branches)))
    return {
        "fold": torch.from_numpy(np.concatenate(folded))[None],
        "layout": tuple(layout),
        "unfold": torch.from_numpy(unfold),
    }


def fold(ids: torch.Tensor, lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """How rows fold up.

    Args:
        ids: ``[R, T]`` token ids, padded on the right.
        lengths: tokens of each row.
        groups: row numbers of each of G groups; every row is in one group. Rows of a group that share their first
            tokens must share what these stand for, as the images behind placeholders.

    Returns:
        ``fold`` ``[G, L]``: index into the R * T tokens; ``segment`` ``[G, L]``: 0 for what a group has in common, then
        1, 2, ... for its branches, -1 for padding; ``unfold`` ``[R, T]``: index into the G * L tokens, of padding to
        the first of the group.
    """
    rows, width = ids.shape
    token = ids.numpy()
    common = [_common([token[row, : lengths[row]] for row in group]) for group in groups]
    sizes = [begin + sum(lengths[row] - begin for row in group) for begin, group in zip(common, groups, strict=True)]
    long = max(sizes)
    folded = np.zeros((len(groups), long), np.int64)
    segment = np.full((len(groups), long), -1, np.int64)
    unfold = np.zeros((rows, width), np.int64)
    for number, (begin, group) in enumerate(zip(common, groups, strict=True)):
        start = number * long
        folded[number, :begin] = group[0] * width + np.arange(begin)
        segment[number, :begin] = 0
        at = begin
        for branch, row in enumerate(group, 1):
            rest = lengths[row] - begin
            folded[number, at : at + rest] = row * width + np.arange(begin, lengths[row])
            segment[number, at : at + rest] = branch
            unfold[row] = start
            unfold[row, :begin] = start + np.arange(begin)
            unfold[row, begin : lengths[row]] = start + at + np.arange(rest)
            at += rest
    found = {"fold": folded, "segment": segment, "unfold": unfold}
    return {name: torch.from_numpy(value) for name, value in found.items()}


def segment_mask(segment: torch.Tensor) -> torch.Tensor:
    """What each token of folded rows sees, ``[G, 1, L, L]``, from ``segment`` ``[G, L]``; padding sees itself."""
    query, key = segment[:, :, None], segment[:, None, :]
    width = segment.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segment.device).tril()
    itself = torch.eye(width, dtype=torch.bool, device=segment.device)
    return ((before & ((key == 0) | (key == query)) & (key >= 0) & (query >= 0)) | itself)[:, None]


def gathered(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``[A, B, ...]`` values at places of the A * B flat ones: ``[C, D, ...]`` for an index ``[C, D]``."""
    return values.flatten(0, 1)[index]


def positions(rows: Mapping[str, Any]) -> torch.Tensor:
    """The place of each token in its row, ``[R, T]``."""
    ids: torch.Tensor = rows["input_ids"]
    return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)


def tokens_of(inputs: Mapping[str, Any]) -> list[str]:
    """Keys of a batch that hold one entry for each token of each row."""
    shape = inputs["input_ids"].shape
    return [
        key
        for key in ("input_ids", "token_type_ids", "mm_token_type_ids")
        if isinstance(inputs.get(key), torch.Tensor) and inputs[key].shape[:2] == shape
    ]


def _members(group: Group) -> list[int]:
    return [row for entry in group for row in ([entry] if isinstance(entry, int) else entry)]


def _common(rows: Sequence[np.ndarray[Any, Any]]) -> int:
    """How many first tokens rows have in common."""
    short = min(map(len, rows))
    same = np.ones(short, bool)
    for row in rows[1:]:
        same &= row[:short] == rows[0][:short]
    return short if same.all() else int(same.argmin())
