"""Which tokens are learned and how much each row counts, on real processors and TRL's own loss."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from run_files import losses
from safetensors.torch import load_file

from vlmdata.errors import ConfigError, DataError
from vlmtrain.collate import IGNORED, rendered
from vlmtrain.config import resolve
from vlmtrain.keys import Supervision
from vlmtrain.model import Loaded
from vlmtrain.runs import RunResult
from vlmtrain.sft import make_trainer, train
from vlmtrain.supervision import SupervisedCollator
from vlmtrain.training import begin
from vlmtrain.trl_seam import compact_lm_head

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "progress": False, "logging_steps": 1}
TURNS = [
    rows.user(rows.PLACE, "What colour?"),
    rows.assistant("It is red."),
    rows.user("And this?"),
    rows.assistant("blue\nor so"),
]
ROWS = [
    rows.sample("turns", TURNS, [rows.picture("red")]),
    rows.sample("asked", [*TURNS, rows.user("Thanks.")], [rows.picture("red")]),
    rows.sample("text", [rows.user("Say yes."), rows.assistant("Yes.")], []),
]
# What stands for an image in the texts of the templates used here, and what frames it.
IMAGE = re.compile(
    r"<image>|<\|image(?:_pad)?\|>|<\|vision_(?:start|end)\|>|</?img>|<IMG_CONTEXT>|\[IMG\]|<start_of_image>"
)


def learned(loaded: Loaded, train_on: str, made: list[dict[str, Any]]) -> list[str]:
    """The supervised tokens of each row, decoded as one text."""
    batch = SupervisedCollator(loaded.processor, loaded.family, Supervision(train_on=train_on))(made)
    assert not batch["labels"][batch["attention_mask"] == 0].ne(IGNORED).any()
    return [loaded.processor.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]


def test_train_on(loaded: Loaded) -> None:
    """Every family: the answers, the last answer, or all text without images and what frames them."""
    if loaded.family.max_images == 0:
        pytest.skip("no images")
    end = loaded.processor.tokenizer.convert_ids_to_tokens(stop(loaded))
    assistant, completion = (learned(loaded, name, ROWS) for name in ("assistant", "completion"))
    first, last = rf"\s?It is red\.{re.escape(end)}", rf"\s?blue\nor so{re.escape(end)}"
    for row in (0, 1):
        assert re.fullmatch(first + last, assistant[row]), assistant[row]
        assert re.fullmatch(last, completion[row]), completion[row]
    assert assistant[2] == completion[2]
    bos = loaded.processor.tokenizer.bos_token or ""
    for row, found in zip(ROWS, learned(loaded, "all", ROWS), strict=True):
        said = rendered(loaded.processor, row)
        # What a model reads in both directions, it sees before it says it.
        whole = said.text[said.begin :] if loaded.family.both_ways else said.text
        # Idefics2's processor puts a space between an image and a word.
        pieces = map(re.escape, IMAGE.split(whole.removeprefix(bos)))
        assert re.fullmatch(" ?".join(pieces), found.removeprefix(bos)), found


def stop(loaded: Loaded) -> int:
    stops = loaded.model.generation_config.eos_token_id
    return stops[-1] if isinstance(stops, list) else stops


def test_rows_without_an_answer_are_left_out_unless_all_is_learned(base: Path, tmp_path: Path) -> None:
    mute = rows.sample("mute", [rows.user("Say yes.")], [])
    data = rows.write(tmp_path / "data", [*rows.colours(7), mute])
    options = {"model": str(base), "max_steps": 1, **QUICK}
    result = train(data, tmp_path / "answers", **options)
    assert result.metrics["rows"]["dropped"] == {"no_answer": 1}
    (dropped,) = json.loads((tmp_path / "answers" / "dropped.json").read_text())
    assert dropped == {"id": "mute", "reason": "no_answer", "detail": "no turn of the assistant"}
    assert train(data, tmp_path / "all", train_on="all", **options).metrics["rows"]["kept"] == 8


def weighed(number: int, weights: Any) -> list[dict[str, Any]]:
    made = rows.colours(number)
    return [{**row, "meta": json.dumps({"quality": weight})} for row, weight in zip(made, weights, strict=True)]


def trainer_for(folder: Path, made: list[dict[str, Any]], base: Path, **options: Any) -> Any:
    data = rows.write(folder / "data", made)
    job = begin("sft", data=[data], out=folder / "run", progress=False, options={"model": str(base), **options})
    assert not isinstance(job, RunResult)
    return make_trainer(job)


def plain_batch(trainer: Any) -> dict[str, Any]:
    """All rows as plain transformers takes them, none folded, all read."""
    collate = trainer.data_collator.collate
    before = collate.share, collate.reads
    collate.share, collate.reads = None, False
    batch: dict[str, Any] = collate(list(trainer.train_dataset))
    collate.share, collate.reads = before
    return batch


@pytest.mark.parametrize("compact", [True, False])
def test_weighted_loss_is_the_formula(base: Path, tmp_path: Path, compact: bool) -> None:
    """sum w nll / sum w n over the rows of an optimizer step, from plain forwards by hand."""
    weights = [0.5, 4.0, 1.5, 2.0, 0.25, 1.0]
    made = weighed(6, weights)
    answers = ["no", "It is a very long answer.", "red", "It is blue.", "x", "yes yes"]
    for row, answer in zip(made, answers, strict=True):
        row["messages"] = [row["messages"][0], rows.assistant(answer)]
    options = {"weight_by": "quality", "batch_size": 3, "accumulate": 2, "max_steps": 1, "compact_head": compact}
    trainer = trainer_for(tmp_path, made, base, **options)
    top = bottom = 0.0
    batch = plain_batch(trainer)
    order = [row["id"] for row in trainer.train_dataset]
    with torch.no_grad():
        plain = {key: value for key, value in batch.items() if key not in ("labels", "weight")}
        logits = trainer.model(**plain).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    nll = -logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    for place, name in enumerate(order):
        weight = weights[int(name.rpartition("-")[2])]
        top += weight * float(nll[place][labels[place] >= 0].sum())
        bottom += weight * int((labels[place] >= 0).sum())
    with compact_lm_head(compact):
        trainer.train()
    found = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert found == pytest.approx(top / bottom, rel=1e-5)
    unweighted = float(nll[labels >= 0].mean())
    assert abs(found - unweighted) > 1e-3, "the weights matter here"


def test_equal_weights_are_no_weights(base: Path, tmp_path: Path) -> None:
    """To the last bit, with accumulation and evaluation, whatever the weight."""
    data = rows.write(tmp_path / "data", weighed(24, [0.3] * 24))
    options = {"model": str(base), "epochs": 2, "accumulate": 2, "eval_fraction": 0.25, **QUICK}
    plain = train(data, tmp_path / "plain", **options)
    same = train(data, tmp_path / "same", weight_by="quality", **options)
    assert losses(tmp_path / "plain") == losses(tmp_path / "same")
    assert plain.metrics["eval"] == same.metrics["eval"]
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "same"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_row_of_weight_zero_is_as_if_it_were_not_there(base: Path, tmp_path: Path) -> None:
    """Left out and counted before training; in a batch by itself it changes no gradient."""
    made = weighed(12, [0, 1, 2] * 4)
    data = rows.write(tmp_path / "data", made)
    options = {"model": str(base), "max_steps": 1, "weight_by": "quality", **QUICK}
    result = train(data, tmp_path / "run", **options)
    assert result.metrics["rows"]["dropped"] == {"weight_zero": 4} and result.metrics["rows"]["kept"] == 8
    trainer = trainer_for(tmp_path / "more", weighed(4, [1, 1, 2, 2]), base, weight_by="quality")
    grads = []
    for kept in (slice(None), slice(0, 3)):
        batch = plain_batch(trainer)
        batch["weight"][3] = 0
        batch = {key: value[kept] for key, value in batch.items()}
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        grads.append({name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})
    assert grads[0] and any(value.abs().max() > 1e-6 for value in grads[0].values())
    for name, value in grads[0].items():
        torch.testing.assert_close(value, grads[1][name], rtol=1e-4, atol=1e-7)


def test_small_weights_lose_nothing(base: Path, tmp_path: Path) -> None:
    """TRL divides by one token at least; a step whose weights add up to less than that is divided by them."""
    weights = [1e-4] * 4 + [1.0]
    trainer = trainer_for(tmp_path, weighed(5, weights), base, weight_by="quality")
    batch = plain_batch(trainer)
    light = {key: value[batch["weight"] < 1] for key, value in batch.items()}
    items = (light["weight"][:, None] * (light["labels"][:, 1:] >= 0)).sum()
    assert 0 < items < 1
    given = trainer.compute_loss(trainer.model, dict(light), num_items_in_batch=items)
    plain = trainer.compute_loss(trainer.model, {key: v for key, v in light.items() if key != "weight"})
    assert given.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{}", "quality is missing; meta has nothing"),
        ('{"other": 1}', "quality is missing; meta has other"),
        ('{"quality": "high"}', 'quality is "high", expected a number'),
        ('{"quality": true}', "quality is true, expected a number"),
        ('{"quality": null}', "quality is null, expected a number"),
        ('{"quality": -1}', "quality is -1, expected a number of at least 0"),
        ('{"quality": NaN}', "quality is nan, expected a number of at least 0"),
        ('{"quality": 1e400}', "quality is inf, expected a number of at least 0"),
        ('{"quality": 1' + "0" * 400 + "}", "expected a number of at least 0"),
        ("[1]", "quality is missing; meta has nothing"),
        ("{", "cannot be read, meta is not JSON"),
    ],
)
def test_weights_that_cannot_be_are_named_before_any_model_is_loaded(meta: str, message: str, tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", [*weighed(4, [1, 2, 3, 4]), {**ROWS[2], "meta": meta}])
    with pytest.raises(DataError) as caught:
        train(data, tmp_path / "run", model="no/such-model", weight_by="quality", **QUICK)
    line = str(caught.value)
    assert line.startswith("weight_by quality: 1 of 5 rows cannot be used: 'text': ") and "\n" not in line
    assert message in line
    assert not (tmp_path / "run").exists()


def test_weights_that_are_all_zero(tmp_path: Path) -> None:
    data = rows.write(tmp_path / "data", weighed(4, [0] * 4))
    with pytest.raises(DataError, match="it is 0 in all 4 rows, so nothing would be learned"):
        train(data, tmp_path / "run", model="no/such-model", weight_by="quality", **QUICK)
    with pytest.raises(ConfigError, match="weight_by does not go with loss_type dft"):
        resolve("sft", {"weight_by": "quality", "loss_type": "dft"})


def test_dft_and_neftune_reach_the_trainer(base: Path, tmp_path: Path) -> None:
    """DFT weighs each token's loss with its probability; NEFTune changes what training sees, not evaluation."""
    made = rows.colours(8)
    first = trainer_for(tmp_path / "nll", made, base)
    second = trainer_for(tmp_path / "dft", made, base, loss_type="dft")
    batch = plain_batch(first)
    with torch.no_grad():
        logits = first.model(**{key: v for key, v in batch.items() if key != "labels"}).logits[:, :-1].float()
    labels = batch["labels"][:, 1:]
    logps = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0][labels >= 0]
    assert first.compute_loss(first.model, dict(batch)).item() == pytest.approx(float(-logps.mean()), rel=1e-5)
    expected = float((-logps * logps.exp()).mean())
    assert second.compute_loss(second.model, dict(batch)).item() == pytest.approx(expected, rel=1e-5)
    runs = {}
    for alpha in (None, 5.0):
        options = {"neftune_noise_alpha": alpha, "eval_fraction": 0.5, "learning_rate": 0.0, "max_steps": 1}
        result = train(tmp_path / "nll" / "data", tmp_path / str(alpha), model=str(base), **{**QUICK, **options})
        runs[alpha] = losses(result.out)[0], result.metrics["eval"]["eval_loss"]
    assert runs[None][0] != runs[5.0][0]
    assert runs[None][1] == pytest.approx(runs[5.0][1], rel=1e-6)
