"""From the loader to the loss: nothing waits for the device, and one batch at a time is on it."""

from __future__ import annotations

import os
import sys
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fed
import labelled_rows
import pytest
import tiny_models
import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from vlmtrain import classify, kto, sft
from vlmtrain.arguments import optimizer_name
from vlmtrain.feeding import Feeding, InTurn
from vlmtrain.ordering import Batches
from vlmtrain.runs import RunResult

PACKAGE = str(Path(sft.__file__).parent)
# What brings a value of a tensor to the host, or makes the host wait to know a size.
WAITS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "equal", "allclose", "nonzero", "cpu",
         "masked_select", "unique", "numpy", "is_nonzero", "argwhere"}  # fmt: skip


class Waits(TorchFunctionMode):
    """Finds what would wait for a device, and who called it."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[str] = []
        self.others = 0

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS or (name == "__getitem__" and _chooses(args[1])):
            caller = _caller()
            if caller.startswith(PACKAGE):
                self.ours.append(f"{caller} {name}")
            else:
                self.others += 1
        return func(*args, **(kwargs or {}))


def _chooses(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


def _caller() -> str:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and file != __file__:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fed.write(tmp_path_factory.mktemp("data"))


WAYS: list[tuple[str, str, dict[str, Any]]] = [
    ("sft", "llava", {}),
    ("sft", "qwen2_vl", {"weight_by": "quality"}),
    ("dpo", "llava", {}),
    ("dpo", "llava", {"image_weight": 1.0, "anchor_weight": 1.0, "reference": "live"}),
    ("kto", "llava", {}),
]
GROUPED: dict[str, Any] = {"packing": False, "group_by_image": True}
ALL = [("sft", "idefics3", GROUPED)] + [
    (method, name, {}) for method in ("sft", "dpo") for name in fed.FAMILIES if (method, name, {}) not in WAYS
]


@pytest.mark.parametrize(
    ("method", "family", "options"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in ALL)]
)
def test_no_step_waits_for_the_device(
    method: str,
    family: str,
    options: dict[str, Any],
    data: dict[str, Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Between a batch's move and the end of its loss nothing of ours reads a value; TRL's own figures do."""
    base = model_folder(family)
    trainer, _ = fed.made(method, data[method], base, tmp_path / "run", accumulate=2, max_steps=2, **options)
    plain, waits = trainer.compute_loss, Waits()

    def watched(*args: Any, **kwargs: Any) -> Any:
        with waits:
            return plain(*args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    assert waits.others >= 4, "the mode sees what TRL reads"
    assert not waits.ours
    assert trainer.tokens_seen > 0


def test_what_waits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same watch on code of ours that does read values."""
    waits, ids = Waits(), torch.tensor([[1, 2]])
    with waits:
        # Copies of ids cannot be told apart but by what is in them.
        assert kto._is_mismatched(ids.clone(), {"input_ids": ids + 1, "KL_input_ids": ids})
        Feeding().tokens_of({"attention_mask": ids})
    assert [entry.split()[-1] for entry in waits.ours] == ["equal", "__int__"]
    before = list(waits.ours)
    with waits:
        assert not kto._is_mismatched(ids, {"input_ids": ids, "KL_input_ids": ids.clone()})
        _, known, _ = ids[ids > 1], bool(ids.sum() > 0), ids.tolist()
    assert known and waits.ours == before and waits.others == 3


def test_figures_are_what_they_were_when_each_was_read_at_once(
    data: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    trainer, job = fed.made("dpo", data["dpo"], base, tmp_path / "run", image_weight=1.0, logging_steps=2, max_steps=4)
    seen: list[dict[str, float]] = []
    plain = trainer.record

    def record(figures: dict[str, torch.Tensor], where: torch.Tensor | None = None) -> None:
        assert where is not None
        seen.append({name: float(values.detach()[where].float().mean()) for name, values in figures.items()})
        plain(figures, where)

    trainer.record = record
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "rewards/corrupted" in entry]
    assert len(seen) == 4 and [entry["step"] for entry in entries] == [1, 2, 4]
    for entry, steps in zip(entries, ([0], [1], [2, 3]), strict=True):
        for name in seen[0]:
            assert entry[name] == pytest.approx(sum(seen[step][name] for step in steps) / len(steps), abs=1e-6)


def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own way: accelerate moves what the loader gives, and a step's batches are fetched first."""

    def loader(self: Any) -> Any:
        args = self.args
        step = args.world_size * args.per_device_train_batch_size * args.gradient_accumulation_steps
        batches = Batches(self.sampler, step, args.per_device_train_batch_size, args.world_size)
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=batches,
                collate_fn=self.data_collator,
                generator=torch.Generator(),
            )
        )

    monkeypatch.setattr(Feeding, "get_train_dataloader", loader)
    for name in ("get_batch_samples", "_get_num_items_in_batch", "_prepare_inputs"):
        monkeypatch.delattr(Feeding, name)


@pytest.mark.parametrize(
    ("method", "options"),
    [("sft", {"lora_dropout": 0.2}), ("sft", {"weight_by": "quality"}), ("dpo", {"lora_dropout": 0.2}), ("kto", {})],
)
def test_one_at_a_time_is_the_same_training(
    method: str,
    options: dict[str, Any],
    data: dict[str, Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """11 rows in steps of 8: the last step of each epoch has two batches, one of a single row."""
    options = {**options, "accumulate": 4, "epochs": 2, "logging_steps": 1}
    apart, _ = fed.made(method, data[method], base, tmp_path / "apart", **options)
    ends: list[tuple[int, bool, bool]] = []
    plain, state = apart.training_step, apart.accelerator.gradient_state

    def step(*args: Any, **kwargs: Any) -> Any:
        ends.append((apart.current_gradient_accumulation_steps, state.sync_gradients, state.end_of_dataloader))
        return plain(*args, **kwargs)

    apart.training_step = step
    apart.train()
    assert [(number, last) for number, last, _ in ends] == [*[(4, False)] * 3, (4, True), (2, False), (2, True)] * 2
    assert [place for place, (_, _, end) in enumerate(ends) if end and place % 6 < 4] == []
    assert ends[5][2] and ends[11][2], "accelerate knows the last batch of an epoch"
    together(monkeypatch)
    at_once, _ = fed.made(method, data[method], base, tmp_path / "at-once", **options)
    at_once.train()
    (weights, losses), (others, expected) = fed.outcome(apart), fed.outcome(at_once)
    assert losses == expected and len(losses) == 4
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(("method", "waiting"), [("sft", 5), ("dpo", 2), ("kto", 2)])
def test_one_batch_at_a_time_is_moved(
    method: str, waiting: int, data: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Pixels on the device: of one batch. In memory: of those whose labels are counted, and one the loader is ahead."""
    trainer, _ = fed.made(method, data[method], base, tmp_path / "run", accumulate=4, max_steps=1)
    made_here: list[weakref.ref[torch.Tensor]] = []
    moved: list[weakref.ref[torch.Tensor]] = []
    most = {"made": 0, "moved": 0}
    collate, move, loss = trainer.data_collator, trainer.moved, trainer.compute_loss

    def alive(found: list[weakref.ref[torch.Tensor]]) -> int:
        return sum(one() is not None for one in found)

    def collated(batch: Any) -> Any:
        found = collate(batch)
        made_here.append(weakref.ref(found["pixel_values"]))
        return found

    def copied(inputs: Any) -> Any:
        # As if it went to another device.
        found = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
        if "pixel_values" in found:
            moved.append(weakref.ref(found["pixel_values"]))
        return move(found)

    def watched(*args: Any, **kwargs: Any) -> Any:
        most["made"], most["moved"] = max(most["made"], alive(made_here)), max(most["moved"], alive(moved))
        return loss(*args, **kwargs)

    trainer.data_collator, trainer.moved, trainer.compute_loss = collated, copied, watched
    trainer.train()
    assert len(moved) == 4 and len(made_here) >= 4
    assert most == {"made": waiting, "moved": 1}


def test_a_classifier_is_fed_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny_models.make("vit", tmp_path / "vit")
    shards = labelled_rows.write(tmp_path / "train", 2)
    options = {"model": str(vit), "epochs": 2, "batch_size": 2, "accumulate": 4, "lora_dropout": 0.1}

    def trained(out: Path) -> Any:
        job = classify.begin(data=[shards], out=out, progress=False, options=options)
        assert not isinstance(job, RunResult)
        trainer = classify.make_trainer(job)
        trainer.train()
        assert trainer.tokens_seen == 24
        return fed.outcome(trainer)[0]

    apart = trained(tmp_path / "apart")
    together(monkeypatch)
    at_once = trained(tmp_path / "at-once")
    assert all(torch.equal(apart[name], at_once[name]) for name in apart)


def test_a_killed_run_goes_on_to_the_same_weights(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    """Dropout draws on from where it was: what makes batches draws from something else."""
    options = {"accumulate": 2, "epochs": 2, "lora_dropout": 0.2, "save_steps": 1, "keep_checkpoints": 9}
    whole, _ = fed.made("sft", data["sft"], base, tmp_path / "whole", **options)
    whole.train()
    killed, _ = fed.made("sft", data["sft"], base, tmp_path / "killed", **options)
    killed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-2"))
    weights, others = fed.outcome(whole)[0], fed.outcome(killed)[0]
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_batches_in_turn_are_made_when_asked_for() -> None:
    asked: list[int] = []
    source = (asked.append(number) or number for number in range(5))  # type: ignore[func-returns-value]
    found = InTurn(next(source), source, 3)
    assert len(found) == 3 and asked == [0]
    for number in found:
        assert asked == list(range(number + 1))
    assert asked == [0, 1, 2] and next(source) == 3


def noted(trainer: Any, file: Path, of: Callable[[Any], Any]) -> Callable[[], set[str]]:
    """Has the trainer's collator write something down of each row, wherever it runs; gives how to read that."""
    collate = trainer.data_collator

    def collated(batch: Any) -> Any:
        with file.open("a") as lines:
            lines.write("".join(f"{of(row)}\n" for row in batch))
        return collate(batch)

    trainer.data_collator = collated
    return lambda: set(file.read_text().split())


def alive(pid: str) -> bool:
    status = Path(f"/proc/{pid}/stat")
    # A child that has ended stays in the table until its parent asks for it.
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("options", [{}, {"cache_vision": "ram"}], ids=["plain", "cache_vision"])
def test_workers_stay_from_pass_to_pass(
    options: dict[str, Any], data: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    """Not where the next pass knows more than the last; with and without them the weights are the same."""
    common = {"epochs": 3, "accumulate": 2, "lora_dropout": 0.2, **options}
    alone, _ = fed.made("sft", data["sft"], base, tmp_path / "alone", workers=0, **common)
    alone.train()
    helped, _ = fed.made("sft", data["sft"], base, tmp_path / "helped", workers=2, **common)
    called = noted(helped, tmp_path / "called", lambda row: os.getpid())
    helped.train()
    assert len(called()) == (6 if options else 2) and str(os.getpid()) not in called()
    assert not any(alive(pid) for pid in called()), "none is left behind"
    weights, others = fed.outcome(alone)[0], fed.outcome(helped)[0]
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_random_views_differ_from_pass_to_pass_with_workers_that_stay(tmp_path: Path) -> None:
    """A run that is killed in its second pass, and goes on with another number of workers, ends with the same."""
    vit = tiny_models.make("vit", tmp_path / "vit")
    shards = labelled_rows.write(tmp_path / "train", 2)
    options = {"model": str(vit), "epochs": 3, "batch_size": 4, "lora_dropout": 0.1, "save_steps": 1}

    def trainer_with(workers: int, out: Path) -> Any:
        given = {**options, "workers": workers, "keep_checkpoints": 9}
        job = classify.begin(data=[shards], out=out, progress=False, options=given)
        assert not isinstance(job, RunResult)
        return classify.make_trainer(job)

    whole = trainer_with(2, tmp_path / "whole")
    called = noted(whole, tmp_path / "called", lambda row: f"{row['epoch']}-{row['row']}")
    whole.train()
    assert called() == {f"{epoch}-{row}" for epoch in range(3) for row in range(12)}, "a view of its own in each pass"
    for workers in (0, 2):
        killed = trainer_with(workers, tmp_path / f"killed-{workers}")
        killed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-4"))
        weights, others = fed.outcome(whole)[0], fed.outcome(killed)[0]
        assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize(
    ("optimizer", "device", "name"),
    [
        ("adamw", "cuda", "adamw_torch_fused"),
        ("adamw", "cpu", "adamw_torch"),
        ("adamw_fused", "cpu", "adamw_torch_fused"),
        ("adamw_8bit", "cuda", "adamw_bnb_8bit"),
        ("sgd", "cuda", "sgd"),
    ],
)
def test_adamw_is_fused_where_that_is_faster(optimizer: str, device: str, name: str) -> None:
    assert optimizer_name(optimizer, device) == name
    assert name in set(transformers.training_args.OptimizerNames)


def test_fused_is_the_same_update(data: dict[str, Path], base: Path, tmp_path: Path) -> None:
    found = []
    for name in ("adamw", "adamw_fused"):
        options = {"optimizer": name, "max_steps": 4, "weight_decay": 0.1, "learning_rate": 1e-3}
        trainer, _ = fed.made("sft", data["sft"], base, tmp_path / name, **options)
        trainer.train()
        assert bool(trainer.optimizer.param_groups[0]["fused"]) is (name == "adamw_fused")
        found.append(fed.outcome(trainer)[0])
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-5, atol=1e-6)
