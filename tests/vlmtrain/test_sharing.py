"""Rows that share their beginning: folded and unfolded, nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_family_training import all_parts, gradients, same, started

from vlmtrain import family as families
from vlmtrain.model import Loaded
from vlmtrain.sharing import fold, gathered, segment_mask

ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=7), min_size=1, max_size=6)


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_every_token_comes_back_and_sees_its_own_row(rows: list[list[int]], data: st.DataObject) -> None:
    ids, lengths = padded(rows), [len(row) for row in rows]
    of = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    groups = [[row for row, one in enumerate(of) if one == group] for group in sorted(set(of))]
    found = fold(ids, lengths, groups)
    folded = gathered(ids, found["fold"])
    assert folded.shape == found["segment"].shape
    back = gathered(folded, found["unfold"])
    seen = segment_mask(found["segment"])[:, 0]
    width = folded.shape[1]
    for row, length in enumerate(lengths):
        assert back[row, :length].tolist() == rows[row]
        for place in range(length):
            group, at = divmod(int(found["unfold"][row, place]), width)
            assert folded[group][seen[group, at]].tolist() == rows[row][: place + 1]
    tokens = sum(
        common + sum(lengths[row] - common for row in group)
        for group in groups
        for common in [next(n for n in range(8, -1, -1) if len({tuple(rows[r][:n]) for r in group}) == 1
                            and all(lengths[r] >= n for r in group))]
    )
    assert int((found["segment"] >= 0).sum()) == tokens
    assert seen.any(-1).all(), "no row of a mask is empty"


def counted(trainer: Any) -> dict[str, int]:
    """Tokens through the language model, padding counted, and images through the tower, of everything that follows."""
    counts = {"tokens": 0}
    decoder = trainer.net.get_decoder()

    def language(module: Any, args: Any, kwargs: Any) -> None:
        words = kwargs.get("inputs_embeds")
        counts["tokens"] += (kwargs["input_ids"] if words is None else words).shape[:2].numel()

    decoder.register_forward_pre_hook(language, with_kwargs=True)
    return counts


@pytest.mark.parametrize("frozen", [True, False])
def test_a_shared_prefix_changes_nothing(
    loaded: Loaded,
    frozen: bool,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Loss and gradients of DPO; what a pair has in common is read once, where the family allows it."""
    family, found, tokens = loaded.family, {}, {}
    parts = {} if frozen else {"parts": all_parts(family)}
    for shared in (True, False):
        trainer, _ = started(
            "dpo", family, model_folder(family.name), tmp_path / str(shared), share_prefix=shared, **parts
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("sharing" in batch) is (shared and family.folds)
        counts = counted(trainer)
        found[shared] = gradients(trainer)
        tokens[shared] = counts["tokens"]
        pairs = batch["attention_mask"].shape[0] // 2
        if "sharing" in batch:
            own = batch["sharing"]["segment"].ge(0)
            chosen, rejected = batch["attention_mask"].bool().split(pairs)
            same_until = [
                next((t for t, (a, b) in enumerate(zip(x[m], y[n], strict=False)) if a != b), None)
                for x, y, m, n in zip(*batch["input_ids"].split(pairs), chosen, rejected, strict=True)
            ]
            common = [int(s) for s in same_until if s is not None]
            assert len(common) == pairs
            expected = int(batch["attention_mask"].sum()) - sum(common)
            assert int(own.sum()) == expected
            assert tokens[shared] == own.numel()
    same(found[True], found[False])
    assert (tokens[True] < 0.75 * tokens[False]) is family.folds
    record_property("matrix", f"{tokens[True] / tokens[False]:.2f}" if family.folds else family.folds_not)


def test_families_say_why_they_do_not_share() -> None:
    for name in families.names():
        family = families.load(name)
        assert family.folds or family.folds_not != "an image classifier" or family.task == "classify"
