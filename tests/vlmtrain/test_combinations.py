"""What cannot be is refused from the keys alone, in the same words by training and by its plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from vlmtrain.cli import main
from vlmtrain.plan import plan


@pytest.mark.parametrize(
    ("method", "keys", "says"),
    [
        ("dpo", "reference=live reference_cache=true", "before training: leave out reference=live"),
        ("kto", "reference=live reference_cache=true", "before training: leave out reference=live"),
        ("dpo", "streaming=true reference_cache=true", "before training: with streaming it is asked live"),
        ("dpo", "streaming=true reference=precompute", "goes through all rows before training: not with streaming"),
        ("sft", "streaming=true eval_fraction=0.1", "--eval-fraction needs all rows at hand"),
        ("sft", "streaming=true group_by_image=true", "--group-by-image needs all rows at hand"),
        ("sft", "streaming=true weight_by=x", "weight_by needs all rows at hand"),
        ("kto", "streaming=true", "streaming is for sft and dpo"),
        ("sft", "shuffle_buffer=9", "shuffle_buffer is for streaming=true"),
        ("sft", "compile=true quantize=4bit", "compile is for weights of 16 or 32 bits"),
        ("sft", "cache_vision_gb=1", "cache_vision_gb limits cache_vision, which is off"),
        ("sft", "cache_vision=ram share_features=false", "not with share_features=false"),
        ("sft", "tuner=loha bias=all", "tuner loha has no bias"),
        ("sft", "sample_rows=3", "sample_rows does nothing without sample_steps"),
        ("sft", "eval_metric=top5", "eval_metric top5 is for image classifiers"),
        ("sft", "report_to=none,wandb", "none stands alone"),
        ("sft", "log_model=end report_to=tensorboard", "log_model end is W&B's"),
        ("classify", "quantize=8bit", "image classifiers are trained in 32 or 16 bits"),
        ("classify", "compact_head=true", "compact_head is for models that read text"),
        ("classify", "head_only=true lora_r=4", "leave out lora_r"),
        ("classify", "cache_gb=1", "no picture looks the same in two passes"),
        ("classify", "augment=none crop_scale=0.5", "crop_scale says how augment=crop_flip crops"),
    ],
)
def test_training_and_plan_refuse_alike(method: str, keys: str, says: str, tmp_path: Path) -> None:
    """Without data and without a model, which are not there; and nothing is written."""
    words = [word for key in keys.split() for word in ("--set", key)]
    place = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]
    trained = CliRunner().invoke(main, [method, *place, "--model", "no/such-model", *words])
    planned = CliRunner().invoke(main, ["plan", "--method", method, "--model", "no/such-model", *words])
    assert trained.exit_code == planned.exit_code == 2
    assert says in trained.stderr and trained.stderr.count("\n") == 1
    assert planned.stderr == trained.stderr
    assert not list(tmp_path.iterdir())


def test_a_plan_asks_the_reference_as_training_does() -> None:
    """With streaming it is live, though nobody said so."""
    config = plan("dpo", model="llava-1.5-7b", streaming=True, rule_of_thumb=True).config
    assert config.preference is not None and config.preference.reference == "live"
