"""Rows that share their beginning: folded and unfolded, nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix import FALLS_BACK
from test_family_training import all_parts, gradients, same, started

from vlmtrain import family as families
from vlmtrain.image_order import by_image, image_keys
from vlmtrain.lean.folded import take_folded
from vlmtrain.model import Loaded
from vlmtrain.ordering import Batches, Grouped, Part, random_of
from vlmtrain.sharing import Share, fold, fold_flat, gathered, segment_mask

ROWS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=7), min_size=1, max_size=6)


def padded(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


@settings(deadline=None)
@given(given_rows=ROWS, data=st.data())
def test_every_token_comes_back_and_sees_its_own_row(given_rows: list[list[int]], data: st.DataObject) -> None:
    ids, lengths = padded(given_rows), [len(row) for row in given_rows]
    of = data.draw(st.lists(st.integers(0, 2), min_size=len(given_rows), max_size=len(given_rows)))
    groups = [[row for row, one in enumerate(of) if one == group] for group in sorted(set(of))]
    found = fold(ids, lengths, groups)
    folded = gathered(ids, found["fold"])
    assert folded.shape == found["segment"].shape
    back = gathered(folded, found["unfold"])
    seen = segment_mask(found["segment"])[:, 0]
    width = folded.shape[1]
    for row, length in enumerate(lengths):
        assert back[row, :length].tolist() == given_rows[row]
        for place in range(length):
            group, at = divmod(int(found["unfold"][row, place]), width)
            assert folded[group][seen[group, at]].tolist() == given_rows[row][: place + 1]
    tokens = sum(
        common + sum(lengths[row] - common for row in group)
        for group in groups
        for common in [
            next(
                n
                for n in range(8, -1, -1)
                if len({tuple(given_rows[r][:n]) for r in group}) == 1 and all(lengths[r] >= n for r in group)
            )
        ]
    )
    assert int((found["segment"] >= 0).sum()) == tokens
    assert seen.any(-1).all(), "no row of a mask is empty"
    flat = fold_flat(ids, lengths, groups)
    assert gathered(ids, flat["fold"]).numel() == tokens
    assert [sum((common, *rests)) for common, rests in flat["layout"]] == (found["segment"] >= 0).sum(1).tolist()
    back = gathered(gathered(ids, flat["fold"]), flat["unfold"])
    assert [back[row, :length].tolist() for row, length in enumerate(lengths)] == given_rows


def counted(trainer: Any) -> dict[str, int]:
    """Tokens through the language model, padding counted, and images through the tower, of everything that follows."""
    counts = {"tokens": 0}
    decoder = trainer.net.get_decoder()

    def language(module: Any, args: Any, kwargs: Any) -> None:
        words = kwargs.get("inputs_embeds")
        counts["tokens"] += (kwargs["input_ids"] if words is None else words).shape[:2].numel()

    decoder.register_forward_pre_hook(language, with_kwargs=True)
    return counts


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
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
            "dpo",
            family,
            model_folder(family.name),
            tmp_path / str(shared),
            share_prefix=shared,
            skip_unread=shared,
            **parts,
        )
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("sharing" in batch) is (shared and family.folds)
        counts = counted(trainer)
        found[shared] = gradients(trainer)
        tokens[shared] = counts["tokens"]
        pairs = batch["attention_mask"].shape[0] // 2
        if "sharing" in batch:
            chosen, rejected = batch["attention_mask"].bool().split(pairs)
            same_until = [
                next((t for t, (a, b) in enumerate(zip(x[m], y[n], strict=False)) if a != b), None)
                for x, y, m, n in zip(*batch["input_ids"].split(pairs), chosen, rejected, strict=True)
            ]
            common = [int(s) for s in same_until if s is not None]
            assert len(common) == pairs
            expected = int(batch["attention_mask"].sum()) - sum(common)
            assert tokens[shared] == expected, "V + P + C + R of each pair, no padding"
    same(found[True], found[False])
    assert (tokens[True] < 0.75 * tokens[False]) is family.folds
    record_property("matrix", "shared" if family.folds else f"{FALLS_BACK} {family.folds_not}")


def test_families_say_why_they_do_not_share() -> None:
    for name in families.names():
        family = families.load(name)
        assert family.folds or family.folds_not != "an image classifier" or family.task == "classify"


def asked_often(family: families.Family) -> list[dict[str, Any]]:
    """Four questions on one image, two on another, one without any, and one that stands before its image."""
    red, blue = rows.picture("red", (60, 40)), rows.picture("blue", (40, 70))
    made = []
    for number, (shown, times) in enumerate(((red, 4), (blue, 2))):
        for turn in range(times):
            ask = rows.user(rows.PLACE, "Which colour is it, then?" if turn else f"What is at {turn}?")
            made.append(rows.sample(f"r{number}-{turn}", [ask, rows.assistant(f"It is {turn * 7}.")], [shown]))
    made.append(rows.sample("text", [rows.user("Say yes."), rows.assistant("Yes.")], []))
    ask = rows.user("Which colour is it, then?", rows.PLACE)
    made.append(rows.sample("late", [ask, rows.assistant("Red, I say.")], [red]))
    return made


def on_all_rows(family: families.Family, base: Path, data: Path, **options: Any) -> Any:
    """An SFT trainer that holds nothing out."""
    return started("sft", family, base, data.parent, eval_fraction=0.0, **options)[0]


def of_each_row(trainer: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Log probabilities of the answers, summed for each row."""
    with torch.no_grad():
        inputs = trainer.with_features(batch)
        found: torch.Tensor = trainer.model(**inputs, use_cache=False, fused_lm_head=True).log_probs.sum(1)
    return found


@pytest.mark.slow
def test_packed_rows_are_rows(loaded: Loaded, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Loss of each row and gradients without padding, where each row has its own images."""
    family, found, each = loaded.family, {}, {}
    data = rows.write(tmp_path / "sft", asked_often(family))
    for packed in (True, False):
        options = {"packing": packed, "share_prefix": False, "skip_unread": packed}
        trainer = on_all_rows(family, model_folder(family.name), data, **options)
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("sharing" in batch) is (packed and family.folds)
        counts = counted(trainer)
        found[packed] = gradients(trainer)
        if packed and family.folds:
            assert counts["tokens"] == int(batch["attention_mask"].sum()) < batch["input_ids"].numel()
        each[packed] = of_each_row(trainer, batch)
    torch.testing.assert_close(each[True], each[False], rtol=1e-5, atol=1e-5)
    same(found[True], found[False])


def test_attention_in_branches_is_attention_under_the_mask(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The same folded rows, once as branches and once under a mask of the whole, which eager attention reads."""
    found = {}
    data = rows.write(tmp_path / "sft", asked_often(families.load("llava")))
    for attention in ("sdpa", "eager"):
        trainer = on_all_rows(families.load("llava"), model_folder("llava"), data, packing=False)
        if attention == "eager":
            trainer.net.config.get_text_config()._attn_implementation = "eager"
            trainer.data_collator.collate.share = take_folded(trainer.net)
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("layout" in batch["sharing"]) is (attention == "sdpa")
        found[attention] = gradients(trainer)
    same(found["sdpa"], found["eager"])


def test_rows_of_one_length_that_share_nothing_stay_as_they_are() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    share = Share(flat=True, packs=True)
    assert share({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [[0], [1]], [0, 0]) == {}
    shorter = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = share({"input_ids": ids, "attention_mask": shorter}, [[0], [1]], [0, 0])["sharing"]
    assert found["fold"].tolist() == [[0, 1, 2, 3, 4]]
    assert found["layout"] == ((3, ()), (2, ()))
    assert found["unfold"].tolist() == [[0, 1, 2], [3, 4, 3]]


def test_rows_on_one_image_change_nothing(
    loaded: Loaded, model_folder: Callable[[str], Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Loss of each row, gradients; each image through the tower once, what it is asked about as a branch."""
    family, found, each, images = loaded.family, {}, {}, {}
    data = rows.write(tmp_path / "sft", asked_often(family))
    for shared in (True, False):
        options = {"packing": shared, "share_prefix": shared, "skip_unread": shared}
        trainer = on_all_rows(family, model_folder(family.name), data, **options)
        batch = trainer.data_collator(list(trainer.train_dataset))
        assert ("sharing" in batch) is (shared and family.folds)
        if "sharing" in batch:
            assert sorted(len(rests) for _, rests in batch["sharing"]["layout"]) == [0, 0, 2, 4]
        images[shared] = batch["pixel_values"].numel()
        found[shared] = gradients(trainer)
        each[shared] = of_each_row(trainer, batch)
    torch.testing.assert_close(each[True], each[False], rtol=1e-5, atol=1e-5)
    same(found[True], found[False])
    assert (images[True] < images[False]) is family.folds
    record_property("matrix", "shared" if family.folds else f"{FALLS_BACK} {family.folds_not}")


KEYS = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(keys=KEYS, batch=st.integers(1, 5), seed=st.integers(0, 3))
def test_rows_of_an_image_meet_and_none_is_lost(keys: list[int], batch: int, seed: int) -> None:
    number = np.asarray(keys)
    part = Part(len(keys), len(keys), by_image(np.arange(len(keys)), number, lambda turn: random_of(seed, turn)))
    order = Grouped([part], batch * 2, batch, seed, lambda rows: [1] * len(rows), together=number)
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(len(keys)))
    order.set_epoch(0)
    assert list(order) == epochs[0]


def test_images_share_batches_as_far_as_they_go_in() -> None:
    keys = np.repeat(np.arange(50), 4)
    part = Part(200, 200, by_image(np.arange(200), keys, lambda turn: random_of(0, turn)))
    order = Grouped([part], 16, 8, 0, lambda rows: [int(row) % 7 for row in rows], together=keys)
    batches = [[int(keys[row]) for row in rows_] for rows_ in Batches(order, 16, 8)]
    assert all(len(set(batch)) == len(batch) // 4 for batch in batches)
    assert len({tuple(sorted(set(batch))) for batch in batches}) == 25
    alone = image_keys([["a"], [], ["a"], [], ["a", "b"]])
    assert alone[0] == alone[2] and len(set(alone.tolist())) == 4
