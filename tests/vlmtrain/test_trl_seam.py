"""Private names we lean on: each test fails when the library moves one of them, and says which."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import colour_rows as rows
import torch
import transformers
import trl
from transformers import ProcessorMixin
from trl.trainer import utils as trl_utils

from vlmtrain import dpo, sft
from vlmtrain.feeding import Feeding
from vlmtrain.runs import RunResult
from vlmtrain.training import begin
from vlmtrain.trl_seam import TrainerSeam, compact_lm_head


def test_names_are_where_we_take_them() -> None:
    assert callable(trl_utils._use_triton)
    assert "_use_triton(" in inspect.getsource(trl_utils.add_fused_lm_head)
    assert hasattr(ProcessorMixin, "get_text_with_replacements")
    for processor in (transformers.LlavaProcessor, transformers.Qwen2VLProcessor, transformers.Idefics3Processor):
        assert "image_sizes" in inspect.signature(processor._get_num_multimodal_tokens).parameters
    assert "self.precompute_ref_logps" in inspect.getsource(trl.DPOTrainer._compute_loss)
    assert 'inputs["ref_chosen_logps"]' in inspect.getsource(trl.DPOTrainer._compute_loss)


def test_everything_the_seam_overrides_is_still_called() -> None:
    members = {**vars(Feeding), **vars(TrainerSeam)}
    own = {name for name, value in members.items() if inspect.isfunction(value)}
    overridden = own - {"as_reference", "loss_of", "moved", "record", "tokens_of", "whole_state", "with_features"}
    for name in overridden - {"compute_ref_log_probs"}:
        assert hasattr(trl.SFTTrainer, name), name
    for name in overridden:
        assert hasattr(trl.DPOTrainer, name), name
    source = inspect.getsource(transformers.Trainer)
    for call in (
        "self.get_train_dataloader()",
        "self.get_batch_samples(epoch_iterator, num_batches, self.args.device)",
        "self._get_num_items_in_batch(batch_samples, device)",
        "self.training_step(model, inputs, num_items_in_batch)",
        "self._prepare_inputs(inputs)",
        "self.log(logs",
        "self._save_checkpoint(model, trial)",
        "self._save(output_dir",
    ):
        assert call in source, call
    assert "self.create_model_card(" in inspect.getsource(trl.SFTTrainer)


def test_compact_head_is_put_back() -> None:
    before = trl_utils._use_triton
    with compact_lm_head():
        assert trl_utils._use_triton(torch.device("cpu"))
    assert trl_utils._use_triton is before
    with compact_lm_head(False):
        assert trl_utils._use_triton is before


def job(method: str, tmp_path: Path, base: Path, **options: Any) -> Any:
    made = rows.colours(6) if method == "sft" else rows.pairs(6)
    data = rows.write(tmp_path / f"{method}-data", made)
    options = {"model": str(base), "max_steps": 1, **options}
    found = begin(method, data=[data], out=tmp_path / method, progress=False, options=options)
    assert not isinstance(found, RunResult)
    return found


def test_our_sampler_and_savers_are_used(base: Path, tmp_path: Path) -> None:
    for method, module in (("sft", sft), ("dpo", dpo)):
        trainer = module.make_trainer(job(method, tmp_path, base, save_steps=1))
        asked: list[int] = []
        plain = trainer.sampler.set_epoch
        trainer.sampler.set_epoch = lambda epoch, asked=asked, plain=plain: (asked.append(epoch), plain(epoch))
        trainer.train()
        assert asked, "the trainer did not tell the sampler its epoch"
        (checkpoint,) = (tmp_path / method / "checkpoints").glob("checkpoint-*")
        assert (checkpoint / "adapter_model.safetensors").is_file() and (checkpoint / "optimizer.pt").is_file()
        assert not (checkpoint / "training_args.bin").exists() and not (checkpoint / "README.md").exists()


def test_an_evaluation_draws_nothing_of_the_runs(base: Path, tmp_path: Path) -> None:
    """Dropout of the steps behind it is that of a run which goes on from the checkpoint."""
    held = rows.write(tmp_path / "held", rows.colours(4))
    options = {"model": str(base), "lora_dropout": 0.1}
    data = rows.write(tmp_path / "data", rows.colours(6))
    found = begin("sft", data=[data], eval_data=[held], out=tmp_path / "run", progress=False, options=options)
    assert not isinstance(found, RunResult)
    trainer, before = sft.make_trainer(found), torch.get_rng_state()
    assert trainer.evaluate()["eval_loss"] > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_compact_head_projects_answers_only(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    trainer = sft.make_trainer(job("sft", tmp_path, base))
    projected: list[int] = []
    plain = trl_utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl_utils._ChunkedLogProbFunction, "apply", lambda h, *rest: (projected.append(len(h)), plain(h, *rest))[1]
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    for on in (True, False):
        with compact_lm_head(on):
            trainer.compute_loss(trainer.model, dict(batch))
    supervised = int((batch["labels"] >= 0).sum())
    assert projected == [supervised, batch["labels"][:, 1:].numel()]
    assert supervised < projected[1] / 3
