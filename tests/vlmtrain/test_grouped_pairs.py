"""DPO: pairs on one image as branches of one beginning; nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import logged
from test_family_training import all_parts, gradients, same, started

from vlmtrain import dpo
from vlmtrain import family as families
from vlmtrain.lean.branch_attention import Branches
from vlmtrain.reference import _part
from vlmtrain.sharing import Share, fold_flat, gathered

FOLDING = [name for name in families.names() if families.load(name).folds]
QUICK = ("llava", "qwen2_5_vl")
EACH = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FOLDING if name not in QUICK)]
APART: dict[str, Any] = {"share_prefix": False, "skip_unread": False}


def preferred_often() -> list[dict[str, Any]]:
    """Four pairs on one image, two asked alike and one before its image; one on another, one without any."""
    red, blue = rows.picture("red", (60, 40)), rows.picture("blue", (40, 70))
    ask = [rows.user(rows.PLACE, "Which colour is it, then?")]
    late = [rows.user("Which colour is it, then?", rows.PLACE)]
    return [
        rows.preference("alike", ask, "It is red.", "It is as blue as can be.", [red]),
        rows.preference("blue", ask, "It is blue.", "Red, I say.", [blue]),
        rows.preference("too", ask, "Red.", "It is green.", [red]),
        rows.preference("text", [rows.user("Say yes.")], "Yes.", "No.", []),
        rows.preference("many", [rows.user(rows.PLACE, "How many are there?")], "There is one.", "Two.", [red]),
        rows.preference("late", late, "Red.", "Blue, blue.", [red]),
    ]


def read_once(ids: list[list[int]], pairs: list[int]) -> int:
    """Tokens of pairs on one image: what all rows have in common, what the two of each pair have, the rest."""

    def common(some: list[list[int]]) -> int:
        return next(place for place, tokens in enumerate(zip(*some, strict=False)) if len(set(tokens)) > 1)

    both = {pair: [ids[pair], ids[len(ids) // 2 + pair]] for pair in pairs}
    begin = common([row for pair in pairs for row in both[pair]])
    forks = {pair: common(both[pair]) for pair in pairs}
    return begin + sum(forks[pair] - begin + sum(len(row) - forks[pair] for row in both[pair]) for pair in pairs)


def trainer_of(name: str, folder: Path, base: Path, **options: Any) -> Any:
    if not (folder / "dpo").exists():
        rows.write(folder / "dpo", preferred_often())
    return started("dpo", families.load(name), base, folder, eval_fraction=0.0, **options)[0]


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EACH)
def test_loss_and_gradients_are_the_same(
    name: str, frozen: bool, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The images of a group pass the tower once; what all its rows have in common, and what a pair has, the model."""
    parts = {} if frozen else {"parts": all_parts(families.load(name))}
    found, images = {}, {}
    for together in (True, False):
        trainer = trainer_of(name, tmp_path, model_folder(name), **({} if together else APART), **parts)
        rows_of = list(trainer.train_dataset)
        batch = trainer.data_collator(rows_of)
        assert ("sharing" in batch) is together
        images[together] = batch["pixel_values"].numel()
        found[together] = gradients(trainer)
        if together:
            lengths = batch["attention_mask"].sum(1)
            ids = [row[:length].tolist() for row, length in zip(batch["input_ids"], lengths, strict=True)]
            numbers = {row["id"]: number for number, row in enumerate(rows_of)}
            group = [numbers[name] for name in ("alike", "too", "many")]
            others = [[number] for number in range(len(rows_of)) if number not in group]
            assert batch["sharing"]["fold"].numel() == sum(read_once(ids, pairs) for pairs in [group, *others])
            assert sorted(len(branches) for _, branches in batch["sharing"]["layout"]) == [2, 2, 2, 3]
    assert images[True] < images[False]
    same(found[True], found[False])


@pytest.mark.parametrize("options", [{}, {"image_weight": 1.0}, {"reference": "live"}, {"cache_vision": "ram"}])
def test_a_run_learns_the_same(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """With the reference before and live, with spoiled pictures, with features that are kept; one batch an epoch."""
    data = rows.write(tmp_path / "data", preferred_often())
    common = {"model": str(base), "batch_size": 6, "epochs": 2, "progress": False, "logging_steps": 1, **options}
    ways: dict[str, dict[str, Any]] = {"grouped": {"group_by_image": True}, "apart": APART}
    runs = [
        logged(dpo.train(data, tmp_path / way, reference_cache=False, **common, **keys).out)
        for way, keys in ways.items()
    ]
    steps = [[entry for entry in run if "loss" in entry] for run in runs]
    assert len(steps[0]) == len(steps[1]) == 2
    for one, other in zip(*steps, strict=True):
        for name in ("loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name


def test_pairs_that_do_not_fold_have_their_own_pixels(base: Path, tmp_path: Path) -> None:
    """Rows beyond the model's window, say."""
    trainer = trainer_of("llava", tmp_path, base)
    collator = trainer.data_collator.collate
    every = list(trainer.train_dataset)
    collator.share = Share(longest=1, flat=True)
    batch = collator(every)
    assert "fold" not in batch.get("sharing", {})
    assert len(batch["pixel_values"]) == sum(len(row["images"]) for row in every)
    torch.testing.assert_close(gradients(trainer)[0], gradients(trainer_of("llava", tmp_path, base, **APART))[0])


def test_pairs_of_an_image_meet(base: Path, tmp_path: Path) -> None:
    """In training, and when the reference is asked."""
    shown = [rows.picture(colour, (40, 40)) for colour in rows.COLOURS]
    ask = [rows.user(rows.PLACE, "What?")]
    made = [
        rows.preference(f"{turn}-{number}", ask, f"It is {turn}.", "No.", [picture])
        for turn in range(4)
        for number, picture in enumerate(shown)
    ]
    data = rows.write(tmp_path / "dpo", made)
    family, seen = families.load("llava"), {}
    for grouped in (True, False):
        folder = tmp_path / str(grouped)
        folder.mkdir()
        (folder / "dpo").symlink_to(data)
        trainer, _ = started(
            "dpo", family, base, folder, eval_fraction=0.0, group_by_image=grouped, batch_size=4, reference="live"
        )
        batches = list(trainer.get_train_dataloader())
        assert sum(len(batch["input_ids"]) for batch in batches) == 2 * len(made)
        seen[grouped] = [len(batch["pixel_values"]) for batch in batches]
        asked = _part(trainer.train_dataset, True, 4, grouped).batches
        assert sorted(place for batch in asked for place in batch) == list(range(len(made)))
        images = trainer.train_dataset["image_sha256"]
        seen[grouped] += [len({images[place][0] for place in batch}) for batch in asked]
    assert seen[True] == [1] * 8 and sum(seen[False]) > 8


ROWS = st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(deadline=None)
@given(made=ROWS, data=st.data())
def test_every_token_of_a_fork_sees_its_own_row(made: list[list[int]], data: st.DataObject) -> None:
    """Rows in forks of one to three, forks in groups, whatever they have in common."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in made], batch_first=True)
    lengths = [len(row) for row in made]
    places = data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=len(made), max_size=len(made))
    )
    groups = [
        [[row for row, at in enumerate(places) if at == (group, fork)] for fork in range(3) if (group, fork) in places]
        for group in range(2)
        if group in {group for group, _ in places}
    ]
    found = fold_flat(ids, lengths, groups)
    tokens = gathered(ids, found["fold"])[0]
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    begin = 0
    for common, rests in found["layout"]:
        branches = Branches(((common, rests),))
        sizes = branches.sizes[0]
        end = begin + common + sum(sizes)
        seen[begin : begin + common, begin : begin + common] = torch.ones(common, common).tril().bool()
        if rests:
            seen[begin + common : end, begin:end] = branches.mask(common, rests, sizes, torch.zeros(1))[0, 0] == 0
        begin = end
    assert begin == len(tokens) <= sum(lengths)
    for row, length in enumerate(lengths):
        for at in range(length):
            assert tokens[seen[found["unfold"][row, at]]].tolist() == made[row][: at + 1]
