from __future__ import annotations

import importlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from datasets import load_dataset
from export_rules import BACK, RULES, lines
from exported import by_id, made, module, parts, run
from made import labelled, messages, preferences, rows_of
from made import row as raw_row
from PIL import Image
from rawfiles import RLAIF, chat, encoded, rlaif_row, shard_bytes, write_parquet
from trl.data_utils import prepare_multimodal_messages

from vlmdata.commands.export import export as command
from vlmdata.convert import convert
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.export import export, export_lines
from vlmdata.marked import JOINER, join
from vlmdata.target import REFUSALS, load, names


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interleaved parts, system and tool turns, several images, marks as text, odd texts."""
    rows = [
        chat(parts("Look: ", 0, "\n and\t", 1, " differ? "), "Yes.\n"),
        chat(parts(0, "Who?"), parts("A ", "", "bird")),
        chat(parts(0, 1, 2), "Three."),
        chat('No picture, é 漢 \U0001f426 \u2028 "quoted" \\n', " Text \r\n only "),
        {"messages": [{"role": "system", "content": "Be brief."}, *chat(parts("Hm", 2), "OK")["messages"]]},
        {"messages": [*chat(parts(3, "x"), "y")["messages"], *chat(parts("z", 0), "w")["messages"]]},
        chat(parts("Write ", "<ima", "ge> as text", 1), parts("<image> it is")),
        chat(parts(1, f"<{JOINER}image> <video> {{{{image}}}}"), "marks"),
        {
            "messages": [
                *chat(parts(2, "call"), "f()")["messages"],
                {"role": "tool", "content": "7"},
                {"role": "assistant", "content": "Seven."},
            ]
        },
        {"messages": [*chat("a", "b")["messages"], {"role": "assistant", "content": "and c"}]},
    ]
    return made(tmp_path_factory.mktemp("wild"), rows)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preferences(tmp_path_factory.mktemp("pairs"), 5)


@pytest.mark.parametrize("target", names())
def test_what_is_exported_comes_back_whole(target: str, wild: Path, tmp_path: Path) -> None:
    for how in ("refuse", "escape") if load(target).marks else (None,):
        done = run(wild, target, tmp_path / f"{how}", literal_mark=how)
        found, rows = by_id(BACK[target](done.out)), by_id(rows_of(wild))
        skipped = {line["id"] for line in lines(done.out / "skipped.jsonl")}
        assert found == {key: row for key, row in rows.items() if key not in skipped}
        assert len(found) == done.exported > 0


@pytest.mark.parametrize("target", sorted(RULES))
def test_the_tool_sees_the_same_turns(target: str, wild: Path, tmp_path: Path) -> None:
    """By the tool's own rule: texts as they are, marks replaced in place, images in order."""
    done = run(wild, target, tmp_path / "out")
    back = BACK[target](done.out)
    for (turns, images), row in zip(RULES[target](done.out), back, strict=True):
        assert images == [image["bytes"] for image in row["images"]]
        for turn, held in zip(turns, row["messages"], strict=True):
            assert turn["role"] == held["role"]
            expected = join(held["content"])
            if isinstance(turn["content"], list):
                kinds = [(part["type"], part.get("text")) for part in turn["content"]]
                assert kinds == [(part["type"], part["text"]) for part in held["content"]]
            elif target == "llava" and "<image>" in expected:
                assert turn["content"] == ("<image>\n" + expected.removeprefix("<image>").strip()).strip()
            else:
                assert turn["content"] == expected


@pytest.mark.parametrize("target", [name for name in names() if "preference" in load(name).kinds])
def test_preferences_come_back(target: str, pairs: Path, tmp_path: Path) -> None:
    done = run(pairs, target, tmp_path / "out")
    assert done.exported == 5 and BACK[target](done.out) == rows_of(pairs)
    if target in RULES:
        for turns, images in RULES[target](done.out):
            assert [turn["role"] for turn in turns] == ["user", "assistant", "assistant"] and len(images) == 1


@pytest.mark.parametrize("target", names())
def test_labels_come_back(target: str, tmp_path: Path) -> None:
    shards = labelled(tmp_path, [1, 0, 2], ["a", "b", "c"])
    done = run(shards, target, tmp_path / "out")
    assert BACK[target](done.out) == rows_of(shards)
    assert json.loads((done.out / "export.json").read_text())["label_names"] == ["a", "b", "c"]
    if target == "swift":
        assert [row["label"] for row in lines(done.out / "data.jsonl")] == [1, 0, 2]


def test_what_a_tool_cannot_hold_is_refused_with_the_reason(wild: Path, tmp_path: Path) -> None:
    expected = {
        "llamafactory": {"literal_mark": 2, "turn_order": 1},
        "swift": {"literal_mark": 2, "turn_order": 1},
        "llava": {"image_place": 1, "several_images": 3, "system_turn": 1, "tool_turn": 1, "turn_order": 1},
        "axolotl": {},
    }
    for target, reasons in expected.items():
        done = run(wild, target, tmp_path / target)
        assert done.skipped == reasons
        for line in lines(done.out / "skipped.jsonl"):
            assert set(line) == {"id", "file", "row", "reason", "detail"} and line["reason"] in REFUSALS
            assert rows_of(wild)[line["row"]]["id"] == line["id"]
    assert run(wild, "llamafactory", tmp_path / "escaped", literal_mark="escape").skipped == {"turn_order": 1}


def test_answers_that_one_turn_cannot_hold(tmp_path: Path) -> None:
    shards = preferences(tmp_path, 2)
    row = {"chosen": [{"role": "assistant"}] * 2, "rejected": [{}], "prompt": [{"role": "user", "content": []}]}
    for target in ("llamafactory", "swift"):
        convert_row = load(target).row
        assert convert_row is not None
        with pytest.raises(ValueError, match="answer_turns: chosen has 2 turns"):
            convert_row({**rows_of(shards)[0], **row}, ["x.jpg"], False)
    same = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    other = {"role": "assistant", "content": [{"type": "text", "text": "ab"}]}
    swift_row = load("swift").row
    assert swift_row is not None
    with pytest.raises(ValueError, match="same_answers"):
        swift_row({**rows_of(shards)[0], "chosen": [same], "rejected": [other]}, ["x.jpg"], False)


@pytest.mark.parametrize("form", ["messages", "prompt-completion"])
def test_trl_takes_its_export(form: str, wild: Path, tmp_path: Path) -> None:
    done = run(wild, "trl", tmp_path / "out", form=form)
    dataset = module(done.out / "load.py").load(cache_dir=str(tmp_path / "cache"))
    rows = rows_of(wild)
    assert len(dataset) == len(rows) and BACK["trl"](done.out) == rows
    for row, held in zip(dataset, rows, strict=True):
        prompt = prepare_multimodal_messages(row["prompt" if "prompt" in row else "messages"], images=row["images"])
        placed = [part["image"] for turn in prompt for part in turn["content"] if part["type"] == "image"]
        assert [picture.size for picture in placed] == [(s["width"], s["height"]) for s in held["image_size"]]
        if form != "messages":
            assert [turn["role"] for turn in row["completion"]] == ["assistant"]
            prepare_multimodal_messages(row["completion"], images=[])


def test_trl_takes_preferences(pairs: Path, tmp_path: Path) -> None:
    for target in ("trl", "unsloth"):
        done = run(pairs, target, tmp_path / target)
        loader = module(done.out / "load.py")
        dataset = loader.load(cache_dir=str(tmp_path / "cache")) if target == "trl" else loader.load()
        for row in dataset:
            (turn,) = prepare_multimodal_messages(row["prompt"], images=row["images"])
            assert any(isinstance(part.get("image"), Image.Image) for part in turn["content"])
            assert not any(part["type"] == "image" for part in row["chosen"][0]["content"])


def test_unsloth_loads_rows_with_images_in_their_parts(wild: Path, tmp_path: Path) -> None:
    done = run(wild, "unsloth", tmp_path / "out")
    for row, held in zip(module(done.out / "load.py").load(), rows_of(wild), strict=True):
        assert set(row) == {"messages"}
        images = [part["image"] for turn in row["messages"] for part in turn["content"] if part["type"] == "image"]
        assert [Path(path).read_bytes() for path in images] == [image["bytes"] for image in held["images"]]


def test_config_files_can_be_read(wild: Path, pairs: Path, tmp_path: Path) -> None:
    factory = run(wild, "llamafactory", tmp_path / "my data").out
    config = yaml.safe_load((factory / "train.yaml").read_text())
    assert config["dataset"] in json.loads((factory / "dataset_info.json").read_text())
    assert config["dataset"] == "my_data" and config["stage"] == "sft" and config["media_dir"] == "."
    ranked = run(pairs, "llamafactory", tmp_path / "ranked").out
    (entry,) = json.loads((ranked / "dataset_info.json").read_text()).values()
    assert entry["ranking"] is True and yaml.safe_load((ranked / "train.yaml").read_text())["stage"] == "dpo"
    axolotl = yaml.safe_load((run(wild, "axolotl", tmp_path / "ax").out / "axolotl.yaml").read_text())
    assert axolotl["datasets"][0]["path"] == "data.jsonl" and axolotl["skip_prepare_dataset"] is True
    assert "swift rlhf --rlhf_type dpo" in (run(pairs, "swift", tmp_path / "sw").out / "train.sh").read_text()


@pytest.mark.parametrize("target", names())
def test_the_same_export_has_the_same_bytes(target: str, wild: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "out", tmp_path / "b" / "out"
    for out in (first, second):
        run(wild, target, out)
    assert shard_bytes(first) == shard_bytes(second)
    assert str(load(target).url) in (first / "README.md").read_text()


def test_an_image_is_one_file_however_often_it_is_used(tmp_path: Path) -> None:
    shards = messages(tmp_path, [raw_row(1, 2), raw_row(2), raw_row(1), raw_row(3)])
    done = run(shards, "jsonl", tmp_path / "out")
    assert (done.images, done.distinct) == (5, 3)
    assert len(list(done.out.glob("images/*/*"))) == 3
    assert "5, 3 of them different" in "\n".join(export_lines(done))


def test_several_shard_files(tmp_path: Path) -> None:
    shards = messages(tmp_path, 12, shard_size="5KB")
    assert len(list(shards.glob("data-*.parquet"))) > 1
    for target in names():
        done = run(shards, target, tmp_path / target)
        skipped = {line["id"] for line in lines(done.out / "skipped.jsonl")}
        assert BACK[target](done.out) == [row for row in rows_of(shards) if row["id"] not in skipped]
    assert len(list((tmp_path / "webdataset").glob("*.tar"))) > 1


def test_mistakes(wild: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MissingError, match="no export target named 'nothing'; valid: axolotl"):
        export(wild, "nothing", out)
    with pytest.raises(ConfigError, match="preference rows, which llava cannot take; --to jsonl or"):
        export(pairs, "llava", out)
    with pytest.raises(ConfigError, match="trl has no marks"):
        export(wild, "trl", out, literal_mark="escape")
    with pytest.raises(ConfigError, match="jsonl has one form"):
        export(wild, "jsonl", out, form="messages")
    with pytest.raises(ConfigError, match="preferences"):
        export(pairs, "trl", out, form="messages")
    with pytest.raises(MissingError, match="no folder"):
        export(tmp_path / "gone", "trl", out)
    with pytest.raises(OutputExistsError, match="lie in each other"):
        export(wild, "trl", wild / "in")
    assert not out.exists()
    only = made(tmp_path, [chat(parts("Say <image>"), "x")], "only")
    with pytest.raises(DataError, match="not one of 1 rows .* literal_mark 1; --literal-mark escape"):
        export(only, "swift", out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def test_output_is_replaced_only_when_asked_and_only_if_ours(wild: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(wild, "llava", out)
    with pytest.raises(OutputExistsError, match="--overwrite replaces it"):
        export(wild, "trl", out)
    run(wild, "trl", out, overwrite=True)
    assert not (out / "images").exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="notes.txt, which is no part of an export"):
        export(wild, "trl", out, overwrite=True)
    foreign = tmp_path / "foreign"
    (foreign / "sub").mkdir(parents=True)
    with pytest.raises(OutputExistsError, match="holds sub"):
        export(wild, "trl", foreign, overwrite=True)


def test_a_failure_leaves_the_former_export(wild: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    run(wild, "jsonl", out)
    before = shard_bytes(out)

    def broken(*arguments: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("vlmdata.export._finish", broken)
    with pytest.raises(RuntimeError):
        export(wild, "jsonl", out, overwrite=True)
    assert shard_bytes(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_changed_image_bytes_are_noticed(tmp_path: Path) -> None:
    shards = messages(tmp_path, 3)
    (file,) = shards.glob("data-*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[2]["images"][0]["bytes"] = encoded(seed=3)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    with pytest.raises(DataError, match="another sha256"):
        export(shards, "jsonl", tmp_path / "out")


def test_the_command(wild: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(wild), "--to", "swift", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "10 read = 7 exported + 3 skipped" in done.output and "literal_mark" in done.output
    shown = CliRunner().invoke(command, ["--help"], terminal_width=80).output
    assert max(map(len, shown.splitlines())) <= 80 and all(name in shown for name in names())


@pytest.mark.parametrize("name", names())
def test_target(name: str) -> None:
    target = load(name)
    documentation = importlib.import_module(f"vlmdata.exports.{name}").__doc__ or ""
    assert target.url in documentation and target.summary and target.kinds
    assert (target.row is None) == (target.container == "parquet")


def test_rejected_preferences_use_their_own_rows(tmp_path: Path) -> None:
    """A row of RLAIF-V whose texts hold marks."""
    rows = [rlaif_row(0, chosen="Type <image> there."), rlaif_row(1)]
    shards = convert("rlaif_v", write_parquet(tmp_path / "x.parquet", rows, RLAIF), tmp_path / "shards").out
    assert run(shards, "llamafactory", tmp_path / "refused").skipped == {"literal_mark": 1}
    done = run(shards, "llamafactory", tmp_path / "escaped", literal_mark="escape")
    assert BACK["llamafactory"](done.out) == rows_of(shards)


@pytest.mark.parametrize("target", [name for name in names() if load(name).container == "jsonl"])
def test_rows_without_images_come_after_one_that_says_what_an_image_is(target: str, tmp_path: Path) -> None:
    """``datasets`` takes the types from the first block; loaded here in blocks of a row or two."""
    rows = [chat(f"Text {number}", "yes") for number in range(6)]
    shards = made(tmp_path, [*rows, chat(parts(0, "Who?"), "A bird."), chat(parts(1, "Who?"), "Two.")])
    done = run(shards, target, tmp_path / "out")
    file = str(done.out / "data.jsonl")
    loaded = load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"), chunksize=900)
    assert len(loaded) == 8
    held = rows_of(shards)
    assert BACK[target](done.out) == [held[6], *held[:6], held[7]]
    only = made(tmp_path, rows, "only")
    assert BACK[target](run(only, target, tmp_path / "only-out").out) == rows_of(only)
