"""What the reference said of rows, kept for other runs: found when nothing has changed, computed again when it has."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
from safetensors.torch import load_file, save_file
from test_distributed import torchrun

from vlmdata.errors import ConfigError
from vlmtrain import dpo, kto, reference, sft
from vlmtrain.caches import content_hash, reference_cache
from vlmtrain.caches.reference_cache import Journal, by_batch
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "lora_dropout": 0.1, "progress": False}
TEXT = rows.preference("text", [rows.user("Say yes.")], "Yes.", "No, it is blue.", [])
MODULES: dict[str, Any] = {"dpo": dpo, "mdpo": dpo, "kto": kto}
TWICE = """
import json, os, signal, sys
from pathlib import Path
from vlmtrain import dpo, distributed

folder, options, dies = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "dies"
plain, asked = dpo.Trainer.reference_columns, []

def counting(self, batch):
    if dies and distributed.rank() == 1 and len(asked) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    columns = plain(self, batch)
    asked.append(len(columns[0]))
    return columns

dpo.Trainer.reference_columns = counting
dpo.train(folder / "pairs", folder / "run", **options)
(folder / f"asked-{distributed.rank()}.json").write_text(json.dumps(sum(asked)))
"""
CHANGES: list[dict[str, Any]] = [
    {"dtype": "bfloat16"}, {"image_processor": {"image_mean": [0.1, 0.1, 0.1]}}, {"method": "mdpo"},
    {"ld_alpha": 0.5}, {"share_prefix": False}, {"share_features": False}, {"method": "mdpo", "seed": 3},
    {"method": "mdpo", "image_corruption": "noise"}, {"method": "kto"},
]  # fmt: skip
TERMS: dict[str, dict[str, Any]] = {"dpo": {}, "mdpo": {"image_weight": 1.0}, "kto": {}}


def pair(number: int, answer: str = "It is so.", colour: Any = None) -> dict[str, Any]:
    """One like no other, in its words and its picture."""
    ask = [rows.user(rows.PLACE, f"What is number {number}?")]
    shown = [rows.picture(colour or (number % 256, 90, 200))]
    return rows.preference(f"p{number}", ask, answer, f"No, it is {number}, a circle.", shown)


class Asked:
    """How many rows the reference is asked of, and when it is to die."""

    def __init__(self) -> None:
        self.rows = self.forwards = 0
        self.dies_at: int | None = None

    def since(self) -> int:
        """Rows since the last call."""
        found, self.rows = self.rows, 0
        return found


class Died(BaseException):
    """A kill; nothing that catches errors catches it."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    counted = Asked()
    for trainer in (dpo.Trainer, kto.Trainer):
        plain = trainer.reference_columns

        def counting(self: Any, batch: Any, plain: Any = plain) -> Any:
            if counted.dies_at is not None and counted.forwards >= counted.dies_at:
                raise Died
            columns = plain(self, batch)
            counted.forwards += 1
            counted.rows += len(columns[0])
            return columns

        monkeypatch.setattr(trainer, "reference_columns", counting)
    return counted


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some rows are alike, one has no picture."""
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", [*rows.pairs(10), *map(pair, range(8)), TEXT])


@pytest.fixture
def ask(base: Path, tmp_path: Path) -> Callable[..., dict[int, tuple[float, ...]]]:
    """Prepare a run and stop before its first step; gives the figures of the reference."""
    number = iter(range(100))

    def ask(data: Path, method: str = "dpo", **options: Any) -> dict[int, tuple[float, ...]]:
        options = {"model": str(base), "batch_size": 4, **TERMS[method], **options}
        out = options.pop("out", None) or tmp_path / f"asked-{next(number)}"
        resume = options.pop("resume", False)
        show = options.pop("progress", False)
        held = options.pop("eval_data", [])
        job = begin(
            MODULES[method].__name__.rpartition(".")[2], data=[data], out=out, eval_data=held, resume=resume,
            progress=show, options=options,
        )  # fmt: skip
        assert not isinstance(job, RunResult)
        found: dict[int, tuple[float, ...]] = {}
        with pytest.MonkeyPatch.context() as patch:
            plain = reference.precompute

            def keep(trainer: Any, job: Any) -> Any:
                found.update(plain(trainer, job))
                return dict(found)

            patch.setattr(MODULES[method], "precompute", keep)
            MODULES[method].make_trainer(job)
        return found

    return ask


Ask = Callable[..., dict[int, tuple[float, ...]]]


def journals(cache: Path) -> list[Path]:
    return sorted((cache / "reference").glob("*/logps.jsonl"))


@pytest.mark.parametrize("method", ["dpo", pytest.param("mdpo", marks=pytest.mark.slow), "kto"])
def test_what_is_found_trains_what_is_computed_trains(
    method: str, base: Path, data: Path, asked: Asked, own_cache: Path, tmp_path: Path
) -> None:
    """To the byte, with dropout; and for another run of any rate, beta, rank and length nothing is asked."""
    train = MODULES[method].train
    options = {"model": str(base), **TERMS[method], **QUICK}
    made = {}
    for name, more in (("cold", {}), ("warm", {}), ("off", {"reference_cache": False})):
        made[name] = train(data, tmp_path / name, **options, **more).out
        assert asked.since() == (0 if name == "warm" else 19), name
    assert len({(out / "adapter_model.safetensors").read_bytes() for out in made.values()}) == 1
    kept = {name: json.loads((out / "checkpoints" / "reference.json").read_text()) for name, out in made.items()}
    assert kept["cold"]["logps"] == kept["warm"]["logps"] == kept["off"]["logps"]
    assert [kept[name]["found"] for name in ("cold", "warm", "off")] == [0, 19, 0]
    other = {**options, "learning_rate": 1e-4, "beta": 0.4, "lora_r": 4, "epochs": 2, "batch_size": 8, "max_steps": 1}
    train(data, tmp_path / "other", **other)
    assert asked.since() == 0 and len(journals(own_cache)) == 1
    assert not (tmp_path / "other" / "checkpoints" / "reference").exists()


def test_rows_to_evaluate_on_are_known_too(data: Path, asked: Asked, ask: Ask, tmp_path: Path) -> None:
    held = rows.write(tmp_path / "held", [pair(3), pair(50), pair(51)])
    first = ask(data, eval_data=[held])
    assert asked.since() == 22
    assert ask(data, eval_data=[held]) == first and asked.since() == 0
    assert len(ask(held)) == 3 and asked.since() == 0, "what was evaluated on is trained on now"


def test_new_rows_alone_are_computed(
    data: Path, asked: Asked, ask: Ask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ask(rows.write(tmp_path / "some", [pair(number) for number in range(20, 30)]))
    assert asked.since() == 10
    capsys.readouterr()
    now = ask(rows.write(tmp_path / "more", [pair(number) for number in range(40, 15, -1)]), progress=True)
    assert asked.since() == 15
    assert "reference 10 of 25 rows known" in capsys.readouterr().err
    assert [now[40 - number] for number in range(20, 30)] == [before[number - 20] for number in range(20, 30)]


def test_a_changed_row_is_computed_again(asked: Asked, ask: Ask, tmp_path: Path) -> None:
    """Another answer, another picture of the same name and hash, another size of it; nothing else is."""
    plain = [pair(number) for number in range(6)]
    ask(rows.write(tmp_path / "plain", plain))
    assert asked.since() == 6
    ask(rows.write(tmp_path / "answer", [pair(0, "It is another."), *plain[1:]]))
    assert asked.since() == 1
    forged = {**pair(1, colour="red"), "image_sha256": plain[1]["image_sha256"]}
    ask(rows.write(tmp_path / "picture", [plain[0], forged, *plain[2:]]))
    assert asked.since() == 1
    renamed = [{**row, "id": f"other-{place}"} for place, row in enumerate(plain[::-1])]
    ask(rows.write(tmp_path / "renamed", renamed))
    assert asked.since() == 0, "neither id nor place belongs to what is asked"
    twice = rows.write(tmp_path / "twice", [plain[0], plain[0], plain[0]])
    assert len(ask(twice)) == 3 and asked.since() == 2, "each has been in a batch of its own"


def test_a_picture_made_smaller_is_another(bases: dict[str, Path], asked: Asked, ask: Ask, tmp_path: Path) -> None:
    big = [{**pair(0), **rows._images("big", [rows.picture("red", (200, 200))])}]
    data = rows.write(tmp_path / "big", big)
    options = {"model": str(bases["qwen2_vl"])}
    ask(data, **options)
    assert asked.since() == 1
    ask(data, max_length=56, **options)
    assert asked.since() == 1
    ask(data, max_length=4096, **options)
    assert asked.since() == 0, "it fits as it is"


@pytest.mark.parametrize("options", [*CHANGES[:3], *(pytest.param(c, marks=pytest.mark.slow) for c in CHANGES[3:])])
def test_a_changed_setting_computes_again(options: dict[str, Any], data: Path, asked: Asked, ask: Ask) -> None:
    before = {key: value for key, value in options.items() if key == "method"} if len(options) > 1 else {}
    ask(data, **before)
    assert asked.since() == 19
    first = ask(data, **options)
    assert asked.since() == 19
    assert ask(data, **options) == first and asked.since() == 0


def test_another_library_computes_again(
    data: Path, asked: Asked, ask: Ask, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(data)
    assert asked.since() == 19
    monkeypatch.setattr(reference_cache, "_version", lambda package: "other" if package == "torch" else None)
    ask(data)
    assert asked.since() == 19
    about = [json.loads(file.read_text()) for file in (own_cache / "reference").glob("*/about.json")]
    assert {"torch.float32"} == {one["weights"] for one in about} and len(about) == 2


def test_a_changed_model_computes_again(base: Path, data: Path, asked: Asked, ask: Ask, tmp_path: Path) -> None:
    """Copied, it is the same; with another template, another weight, an adapter on it or another adapter it is not."""
    ask(data)
    assert asked.since() == 19
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    ask(data, model=str(copy))
    assert asked.since() == 0
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + "{# a comment #}")
    ask(data, model=str(copy))
    assert asked.since() == 0, "it writes the same"
    template.write_text("{{ 'Now: ' }}" + template.read_text())
    ask(data, model=str(copy))
    assert asked.since() == 19
    shutil.copy(base / template.name, template)
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if "language_model" in name and "layers" in name and weights[name].ndim == 2)
    weights[name][3, 5] += 1e-3
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    ask(data, model=str(copy))
    assert asked.since() == 19
    tuned = []
    colours = rows.write(tmp_path / "colours", rows.colours(4))
    for seed in (0, 1):
        options = {"model": str(base), "max_steps": 1, "progress": False, "seed": seed}
        tuned.append(sft.train(colours, tmp_path / f"sft-{seed}", **options).out)
        found = ask(data, adapter=str(tuned[-1]))
        assert asked.since() == 19
        assert ask(data, adapter=str(tuned[-1])) == found and asked.since() == 0
    settings = tuned[0] / "adapter_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "lora_alpha": 3}))
    ask(data, adapter=str(tuned[0]))
    assert asked.since() == 19, "the weights are the same, their scale is not"


@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_where_it_was(
    kept: bool, data: Path, asked: Asked, ask: Ask, own_cache: Path, tmp_path: Path
) -> None:
    """With the batches it had, though half of its rows were known and another run has added more in between."""
    held = rows.write(tmp_path / "held", [pair(60), pair(61), pair(62)])
    options: dict[str, Any] = {"eval_data": [held], "reference_cache": kept}
    some = rows.write(tmp_path / "some", [pair(number) for number in (1, 2, 5, 6)])
    ask(some)
    shutil.copytree(own_cache, tmp_path / "before")
    asked.since()
    whole = ask(data, out=tmp_path / "whole", **options)
    computed = 22 - 4 * kept
    assert asked.since() == computed
    shutil.rmtree(own_cache)
    shutil.copytree(tmp_path / "before", own_cache)
    asked.forwards, asked.dies_at = 0, 2
    with pytest.raises(Died):
        ask(data, out=tmp_path / "cut", **options)
    assert asked.since() == 8
    asked.dies_at = None
    ask(data)
    asked.since()
    file = tmp_path / "cut" / "checkpoints" / "reference" / "0.jsonl"
    # Killed while it wrote the next line.
    file.write_bytes(file.read_bytes() + b'\nabcdef0123456789 {"3": [-1.0, -2')
    assert ask(data, out=tmp_path / "cut", resume=True, workers=0, **options) == whole
    assert asked.since() == computed - 8
    note = [json.loads((tmp_path / n / "checkpoints" / "reference.json").read_text()) for n in ("whole", "cut")]
    assert note[0] == note[1]
    assert ask(data, out=tmp_path / "cut", resume=True, **options) == whole and asked.since() == 0


def test_damaged_lines_are_noticed(
    data: Path, asked: Asked, ask: Ask, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ask(data)
    asked.since()
    (file,) = journals(own_cache)
    raw = file.read_bytes()
    lines = [line for line in raw.split(b"\n") if line]
    assert len(lines) == 5
    place = raw.index(b"-", raw.index(lines[1])) + 1
    file.write_bytes(raw[:place] + (b"7" if raw[place : place + 1] != b"7" else b"8") + raw[place + 1 :])
    capsys.readouterr()
    assert ask(data, progress=True) == first, "computed in the batch it was computed in"
    assert asked.since() == 4
    assert "reference lines that are damaged: 1; their rows are computed again" in capsys.readouterr().err
    ask(data, progress=True)
    assert asked.since() == 0 and "damaged" not in capsys.readouterr().err
    file.write_bytes(os.urandom(4096))
    assert ask(data) == first and asked.since() == 19


def test_without_a_place_a_run_goes_on(
    data: Path, asked: Asked, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(content_hash.CACHE, str(tmp_path / "file" / "cache"))
    assert len(ask(data, progress=True)) == 19
    said = capsys.readouterr().err
    assert "reference log-probabilities are not kept for other runs" in said and "Not a directory" in said
    assert asked.since() == 19


def test_rows_that_cannot_be_read_are_named_again(asked: Asked, ask: Ask, tmp_path: Path) -> None:
    made = [pair(number) for number in range(6)]
    made[2]["images"][0]["bytes"] = made[2]["images"][0]["bytes"][:60]
    data = rows.write(tmp_path / "data", made)
    for name, forwards in (("first", 2), ("second", 0)):
        asked.forwards = 0
        assert sorted(ask(data, out=tmp_path / name)) == [0, 1, 3, 4, 5]
        assert asked.forwards == forwards
        (line,) = (tmp_path / name / "bad_rows.jsonl").read_text().splitlines()
        assert json.loads(line)["row"] == 2


def test_rows_of_a_batch_are_known_together(
    data: Path, asked: Asked, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a row's figures depend on the others of its batch."""
    monkeypatch.setattr(reference, "by_batch", lambda net: True)
    first = ask(data)
    assert asked.since() == 19
    assert ask(data) == first and asked.since() == 0
    ask(data, batch_size=8)
    assert asked.since() == 16, "the last three rows are a batch as before"


def test_which_bits_depend_on_the_batch(base: Path, ask: Ask, asked: Asked, data: Path) -> None:
    pytest.importorskip("bitsandbytes")
    for bits, expected in (("8bit", 19), ("4bit", 0)):
        ask(data, quantize=bits)
        assert asked.since() == 19
        ask(data, quantize=bits)
        assert asked.since() == 0
        ask(data, quantize=bits, batch_size=3)
        assert asked.since() == expected

    @dataclasses.dataclass
    class Net:
        config: Any

    assert by_batch(Net(type("Config", (), {"quantization_config": {"quant_method": "fp8"}})))
    assert not by_batch(Net(type("Config", (), {})))


def test_an_asked_cache_needs_a_reference_before_training(base: Path, data: Path, tmp_path: Path) -> None:
    options = {"model": str(base), "progress": False, "reference_cache": True}
    with pytest.raises(ConfigError, match="before training: leave out reference=live"):
        dpo.train(data, tmp_path / "no", reference="live", **options)
    with pytest.raises(ConfigError, match="before training: with streaming it is asked live"):
        dpo.train(data, tmp_path / "no", streaming=True, **options)


@pytest.mark.slow
def test_two_processes_and_a_kill(base: Path, asked: Asked, ask: Ask, tmp_path: Path) -> None:
    """One dies by SIGKILL on its way; both go on where they were, and a single process finds what they computed."""
    data = rows.write(tmp_path / "pairs", [pair(number) for number in range(19)])
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    options = {"model": str(base), "batch_size": 2, "max_steps": 1, "progress": False}
    cut = torchrun(str(script), str(tmp_path), json.dumps(options), "dies")
    assert cut.returncode != 0 and (tmp_path / "run" / "checkpoints" / "reference" / "1.jsonl").is_file()
    before = sum(len(Journal(tmp_path / f"run/checkpoints/reference/{rank}.jsonl").read()[0]) for rank in (0, 1))
    run = torchrun(str(script), str(tmp_path), json.dumps({**options, "resume": True}), "lives")
    assert run.returncode == 0, run.stderr
    assert sum(json.loads((tmp_path / f"asked-{rank}.json").read_text()) for rank in (0, 1)) == 19 - before < 19
    found = ask(data)
    assert len(found) == 19 and asked.since() == 0
    note = json.loads((tmp_path / "run" / "checkpoints" / "reference.json").read_text())
    assert found == {row: tuple(figures) for row, *figures in note["logps"]}
