"""Two processes on this machine's CPU (gloo) make the run of one: same rows, same losses, one voice, one folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
import transformers
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from test_bad_rows import entries, spoil

from vlmdata.errors import MissingError
from vlmtrain import distributed, dpo, sft
from vlmtrain.launch import launch_names, launch_text
from vlmtrain.model import load

BIN = Path(sys.executable).parent
HERE = Path(__file__).parent

# Several runs in one start of the processes, which is what takes the time.
SEVERAL = """
import json, sys
from pathlib import Path

sys.path.insert(0, {here!r})
import torch
from killed import Died, deadly
from vlmtrain import distributed, dpo, sft

folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
pairs = {{key: value for key, value in options.items() if key != "lora_dropout"}}
dpo.train(folder / "pairs", folder / "dpo-two", **pairs, eval_data=[folder / "pairs-held"])
sft.train(folder / "rows", folder / "whole", **options)
plain = deadly(sft, 5)
try:
    sft.train(folder / "rows", folder / "cut", **options)
except Died:
    sft.make_trainer = plain
    sft.train(folder / "rows", folder / "cut", resume=True, **options)
wrapped = []
made = sft.make_trainer

def watch(job):
    trainer = made(job)
    prepare = trainer._prepare_for_training
    def prepared(*args, **kwargs):
        found = prepare(*args, **kwargs)
        wrapped.extend(sorted({{type(m).__name__ for m in found[0].modules()}}))
        return found
    trainer._prepare_for_training = prepared
    return trainer

sft.make_trainer = watch
sft.train(folder / "rows", folder / "seen", **{{**options, "max_steps": 1}})
if distributed.is_first():
    (folder / "wrapped.json").write_text(json.dumps(wrapped))
"""


def start(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=500)


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    return start(str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", *command)


def logged(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def difference(first: Path, second: Path) -> float:
    """The largest, as a share of the largest weight."""
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max() / b[key].abs().max()) for key in a)


def test_two_processes_are_one(base: Path, tmp_path: Path) -> None:
    """The command unchanged, with unreadable rows, text rows, evaluation and an epoch's last step that is not full."""
    bare = [rows.sample(f"t{i}", [rows.user(f"Say {i}."), rows.assistant(f"{i}")], []) for i in range(5)]
    data = rows.write(tmp_path / "data", spoil(rows.colours(25) + bare, (4, 11)))
    held = rows.write(tmp_path / "held", rows.colours(8))
    flags = ["--data", str(data), "--eval-data", str(held), "--model", str(base), "--epochs", "2"]
    flags += ["--learning-rate", "1e-3", "--set", "logging_steps=1", "--parts", "vision,projector,language"]
    run = torchrun("-m", "vlmtrain", "sft", *flags, "--out", str(tmp_path / "two"), "--batch-size", "2")
    assert run.returncode == 0, run.stderr
    options: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "logging_steps": 1, "model": str(base)}
    options |= {"parts": "vision,projector,language", "progress": False}
    for name, batch, accumulate in (("one", 4, 1), ("accumulated", 2, 2)):
        sft.train(data, tmp_path / name, eval_data=[held], batch_size=batch, accumulate=accumulate, **options)
        # The mean of batches that is evaluation's loss depends on what they are.
        evaluated = [("eval_loss", 2)] if batch == 2 else []
        for key, count in (("loss", 16), *evaluated):
            assert len(logged(tmp_path / "two", key)) == count
            assert logged(tmp_path / "two", key) == pytest.approx(logged(tmp_path / name, key), rel=1e-4), key
        # Sums in another order: Adam makes steps of gradients that are rounding alone.
        assert difference(tmp_path / "two", tmp_path / name) < 0.02
        assert entries(tmp_path / name) == entries(tmp_path / "two") and len(entries(tmp_path / "two")) == 2
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert two["rows"] == one["rows"] and two["processes"] == 2
    # One voice: each line once.
    for line in ("rows   30, 8 for evaluation", "step 1/16", "2 rows could not be read", "two: 16 steps in"):
        assert (run.stdout + run.stderr).count(line) == 1, line
    assert "find_unused_parameters" not in run.stderr


def test_an_error_is_told_once(base: Path, tmp_path: Path) -> None:
    """By a check in both processes, and by one that the first alone makes; each ends with status 2."""
    data = rows.write(tmp_path / "data", rows.colours(8))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    faults = (
        ("missing", "x", "no folder"),
        (str(data), "taken", "is not empty and not a run folder"),
    )
    for given, out, said in faults:
        command = ["sft", "--data", given, "--model", str(base), "--out", str(tmp_path / out)]
        run = torchrun("-m", "vlmtrain", *command)
        assert run.returncode == 1, "the launcher's own status"
        assert len(re.findall(rf"^vlmtrain: .*{said}", run.stderr, re.MULTILINE)) == 1, run.stderr
        assert len(re.findall(r"exitcode *: 2", run.stderr)) >= 1
        assert "in begin" not in run.stderr, "no traceback of ours"
    assert not (tmp_path / "x").exists()


# accelerate 1.15 shards on accelerators only; on a CPU it would fall back to DDP without a word.
ON_CPU = """
import accelerate.state as state

usual = state.AcceleratorState.__init__

def init(self, *args, fsdp_plugin=None, **kwargs):
    usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.fsdp_plugin = fsdp_plugin
        # Each new state starts from this.
        self.distributed_type = state.PartialState._shared_state["distributed_type"] = state.DistributedType.FSDP

state.AcceleratorState.__init__ = init
"""

OPTIONS: dict[str, Any] = {
    "batch_size": 2, "accumulate": 2, "learning_rate": 1e-3, "epochs": 2, "save_steps": 2, "logging_steps": 1,
    "lora_dropout": 0.1, "progress": False,
}  # fmt: skip


def several(base: Path, folder: Path, before: str, *launcher: str) -> dict[str, Any]:
    """Run DPO, SFT and a killed and resumed SFT in two processes."""
    rows.write(folder / "rows", rows.colours(30))
    # TRL's loss of pairs is a mean of batches' means: the same only where all are full.
    rows.write(folder / "pairs", rows.pairs(32))
    rows.write(folder / "pairs-held", rows.pairs(6))
    options = {**OPTIONS, "model": str(base)}
    script = folder / "several.py"
    script.write_text(before + SEVERAL.format(here=str(HERE)))
    run = start(*launcher, str(script), str(folder), json.dumps(options))
    assert run.returncode == 0, run.stderr
    return options


@pytest.mark.slow
def test_preferences_and_resume(base: Path, tmp_path: Path) -> None:
    options = several(base, tmp_path, "", str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2")
    single = {**options, "batch_size": 4, "lora_dropout": 0.0}
    dpo.train(tmp_path / "pairs", tmp_path / "dpo-one", eval_data=[tmp_path / "pairs-held"], **single)
    for key in ("loss", "eval_loss", "reward_margin", "reward_accuracy"):
        one, two = logged(tmp_path / "dpo-one", key), logged(tmp_path / "dpo-two", key)
        assert one and two == pytest.approx(one, rel=1e-3, abs=1e-4), key
    one, two = (
        dict((row, pair) for row, *pair in json.loads(file.read_text())["logps"])
        for file in (tmp_path / name / "checkpoints" / "reference.json" for name in ("dpo-one", "dpo-two"))
    )
    assert one.keys() == two.keys() and len(one) == 38
    assert all(two[row] == pytest.approx(one[row], rel=1e-4) for row in one)
    assert json.loads((tmp_path / "cut" / "metrics.json").read_text())["resumed_from_step"] == 4
    assert difference(tmp_path / "cut", tmp_path / "whole") == 0.0
    assert "DistributedDataParallel" in json.loads((tmp_path / "wrapped.json").read_text())


@pytest.mark.slow
def test_weights_in_parts(base: Path, tmp_path: Path) -> None:
    """FSDP 2 on two CPU processes, set up as by the packaged configuration: wrapped, trained, saved whole, resumed."""
    settings = {key.upper(): str(value) for key, value in yaml.safe_load(launch_text("fsdp"))["fsdp_config"].items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        for key, value in settings.items():
            patch.setenv(key, value)
        options = several(base, tmp_path, ON_CPU, str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2")
    wrapped = json.loads((tmp_path / "wrapped.json").read_text())
    assert {"FSDPLlamaDecoderLayer", "FSDPCLIPEncoderLayer"} <= {*wrapped}, wrapped
    assert "DistributedDataParallel" not in wrapped
    assert difference(tmp_path / "cut", tmp_path / "whole") == 0.0
    single = {**options, "batch_size": 4, "lora_dropout": 0.0}
    dpo.train(tmp_path / "pairs", tmp_path / "dpo-one", eval_data=[tmp_path / "pairs-held"], **single)
    assert logged(tmp_path / "dpo-two", "loss") == pytest.approx(logged(tmp_path / "dpo-one", "loss"), rel=1e-3)
    assert difference(tmp_path / "dpo-two", tmp_path / "dpo-one") < 0.02
    loaded = load(str(base), tmp_path / "dpo-two")
    assert loaded.model.peft_config["default"].r == 16


@pytest.mark.parametrize("name", launch_names())
def test_accelerate_takes_the_launch_configurations(name: str, tmp_path: Path) -> None:
    """Read as its command reads them: every key is one of its options, and the plugins can be made from them."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    file = tmp_path / f"{name}.yaml"
    file.write_text(launch_text(name))
    config = load_config_from_file(str(file))
    known = vars(launch_command_parser().parse_args(["--config_file", str(file), "x.py"]))
    assert config.num_processes == 4
    assert {*config.fsdp_config, *config.deepspeed_config} <= {*known}
    if name == "fsdp":
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=config.fsdp_config["fsdp_version"],
            auto_wrap_policy=config.fsdp_config["fsdp_auto_wrap_policy"],
            state_dict_type=config.fsdp_config["fsdp_state_dict_type"],
            reshard_after_forward=config.fsdp_config["fsdp_reshard_after_forward"],
        )
        assert "FULL_STATE_DICT" in str(plugin.state_dict_type), "or transformers saves no adapter"


def test_models_name_the_layers_to_wrap(bases: dict[str, Path]) -> None:
    for name, folder in bases.items():
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, config.architectures[0])
        with torch.device("meta"):
            model = kind._from_config(config)
        found = {type(module).__name__ for module in model.modules()}
        assert model._no_split_modules and {*model._no_split_modules} & found, name


def test_launch_configurations_by_name() -> None:
    assert launch_names() == ["ddp", "deepspeed-zero2", "deepspeed-zero3", "fsdp"]
    with pytest.raises(MissingError, match="no launch configuration 'zero4'; valid: ddp, deepspeed-zero2"):
        launch_text("zero4")


def test_one_process_is_its_own_first() -> None:
    assert (distributed.world(), distributed.rank(), distributed.is_first()) == (1, 0, True)
    assert distributed.first(lambda: 3) == 3 and distributed.gathered("a") == ["a"] and distributed.speaks("x")
