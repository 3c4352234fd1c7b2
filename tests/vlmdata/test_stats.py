from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rawfiles import (
    CAULDRON,
    RLAIF,
    cauldron_rows,
    chat,
    encoded,
    food_schema,
    image,
    pairs,
    rlaif_row,
    write_json,
    write_parquet,
)

from vlmdata.commands.stats import stats as command
from vlmdata.convert import convert
from vlmdata.errors import ConfigError, DataError, MissingError, OutputExistsError
from vlmdata.findings import findings, percent
from vlmdata.histogram import compact, distribution, number
from vlmdata.report_file import check_file
from vlmdata.shards import Shards, open_shards
from vlmdata.stats import MEASURES, collect
from vlmdata.stats_view import terminal


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("talks")
    rows = cauldron_rows(7)
    rows.append({"images": [image(3)], "texts": pairs(("Wie spät ist es?", "Zehn\u2003nach drei,\nungefähr. 🙂"))})
    rows.append({"images": [image(3)], "texts": pairs(("Blank?", " "))})
    write_parquet(folder / "x.parquet", rows, CAULDRON)
    return open_shards(convert("the_cauldron", folder / "x.parquet", folder / "out", config="clevr").out)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("preferences")
    rows = [rlaif_row(number, image=image(number % 2)) for number in range(8)]
    rows += [rlaif_row(8, chosen="A long and careful answer.", rejected="No."), rlaif_row(9, rejected="A gradient.")]
    write_parquet(folder / "x.parquet", rows, RLAIF)
    return open_shards(convert("rlaif_v", folder / "x.parquet", folder / "out").out)


@pytest.fixture(scope="module")
def dishes(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    folder = tmp_path_factory.mktemp("dishes")
    names = ["waffles", "pizza", "sushi"]
    rows = [{"image": image(number), "label": int(number % 8 == 0)} for number in range(12)]
    write_parquet(folder / "x.parquet", rows, food_schema(names))
    return open_shards(convert("food101", folder / "x.parquet", folder / "out").out)


def texts(turn: dict[str, Any]) -> str:
    return "".join(part["text"] or "" for part in turn["content"])


def test_numbers_are_those_of_a_plain_count(talks: Shards) -> None:
    rows = list(talks.rows())
    turns = [turn for row in rows for turn in row["messages"]]
    expected = {
        "turns": [len(row["messages"]) for row in rows],
        "images_per_row": [len(row["images"]) for row in rows],
        "row_characters": [sum(len(texts(turn)) for turn in row["messages"]) for row in rows],
        "question_characters": [len(texts(turn)) for turn in turns if turn["role"] == "user"],
        "question_words": [len(texts(turn).split()) for turn in turns if turn["role"] == "user"],
        "answer_characters": [len(texts(turn)) for turn in turns if turn["role"] == "assistant"],
        "answer_words": [len(texts(turn).split()) for turn in turns if turn["role"] == "assistant"],
        "width": [size["width"] for row in rows for size in row["image_size"]],
        "image_bytes": [len(picture["bytes"]) for row in rows for picture in row["images"]],
    }
    found = collect([talks])
    for name, values in expected.items():
        spread = found.distributions[name]
        assert (spread.count, spread.sum) == (len(values), sum(values)), name
        assert (spread.min, spread.max) == (min(values), max(values)), name
        assert spread.p50 == np.quantile(values, 0.5, method="inverted_cdf"), name
    assert found.records == 8 and found.read == 9 and found.kept == 8 and found.rejected == {"blank_answer": 1}
    assert found.roles == {"assistant": 15, "user": 15}
    assert found.short_answers["Nothing."] == 7 and found.short_answers["Answer 3."] == 1
    hashes = [row["image_sha256"] for row in rows]
    flat = [key for keys in hashes for key in keys]
    assert (found.images, found.distinct_images) == (len(flat), len(set(flat)))
    assert found.most_repeated == max(map(flat.count, flat))
    shared = {key for key in flat if sum(key in keys for keys in hashes) > 1}
    assert found.repeated_rows == sum(bool(shared & set(keys)) for keys in hashes) > 0
    assert found.imbalance is None and not found.longer


def test_an_image_twice_in_one_row_is_no_repeat_between_rows(tmp_path: Path) -> None:
    raw = [{"images": [image(1), image(1)], "texts": pairs(("Same?", "Yes."))}]
    done = convert("the_cauldron", write_parquet(tmp_path / "x.parquet", raw, CAULDRON), tmp_path / "o", config="vsr")
    found = collect([open_shards(done.out)])
    assert (found.images, found.distinct_images, found.repeated_rows, found.most_repeated) == (2, 1, 0, 2)


def test_rows_without_images(tmp_path: Path) -> None:
    raw = write_json(tmp_path / "x.json", [chat("Hello?", "Hi."), chat("<image>What?", "A dog.", ["a.jpg"])])
    (tmp_path / "a.jpg").write_bytes(encoded())
    found = collect([open_shards(convert("ocr_json", raw, tmp_path / "both").out)])
    assert found.images == 1 and found.distributions["images_per_row"].min == 0
    text = write_json(tmp_path / "y.json", [chat("Hello?", "Hi.")])
    alone = collect([open_shards(convert("ocr_json", text, tmp_path / "text").out)])
    assert (alone.images, alone.distinct_images) == (0, 0) and "width" not in alone.distributions
    assert "none" in terminal(alone) and any("No row has an image" in finding.text for finding in findings(alone))


def test_preferences_compare_both_answers(preferences: Shards) -> None:
    found = collect([preferences])
    assert found.longer == {"chosen": 1, "rejected": 8, "neither": 0} and found.rejected == {"same_answers": 1}
    assert found.distributions["chosen_minus_rejected_words"].min == -3
    assert found.distributions["chosen_words"].sum == 8 * 2 + 5
    assert found.distributions["rejected_characters"].sum == 8 * len("A gradient and a dog.") + 3
    assert "answer_words" not in found.distributions
    remarks = " ".join(finding.text for finding in findings(found))
    assert "rejected answer is longer" in remarks and "commercial" in remarks and "CC-BY-NC-4.0" in remarks


def test_labels_and_their_balance(dishes: Shards) -> None:
    found = collect([dishes])
    assert found.labels == {"waffles": 10, "pizza": 2, "sushi": 0}
    assert found.imbalance == float("inf") and found.to_json()["imbalance"] is None
    assert any("1 of 3 classes have no row" in finding.text for finding in findings(found))


def test_several_datasets_add_up(talks: Shards, preferences: Shards, dishes: Shards) -> None:
    parts = [collect([one]) for one in (talks, preferences, dishes)]
    found = collect([talks, preferences, dishes])
    assert found.records == sum(part.records for part in parts)
    assert found.images == sum(part.images for part in parts)
    assert found.distributions["turns"].sum == sum(part.distributions["turns"].sum for part in parts)
    assert sum(found.licences.values()) == found.records and len(found.datasets) == 3
    assert found.stored.count == sum(part.stored.count for part in parts)
    with pytest.raises(ConfigError, match="given twice"):
        collect([talks, talks])


def test_no_image_is_read(talks: Shards, tmp_path: Path) -> None:
    """The bytes of all images are overwritten, and nobody notices."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (talks.path / "manifest.json", *talks.files):
        (copy / path.name).write_bytes(path.read_bytes())
    file = copy / talks.files[0].name
    data = bytearray(file.read_bytes())
    overwritten = 0
    metadata = pq.read_metadata(file)
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.path_in_schema.startswith("images."):
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
                overwritten += chunk.total_compressed_size
    file.write_bytes(data)
    assert overwritten > 1000
    with pytest.raises(OSError):
        pq.read_table(file)
    before, after = collect([talks]).to_json(), collect([open_shards(copy)]).to_json()
    for found in (before, after):
        found["distributions"].pop("image_bytes", None)
        found.pop("datasets")
    assert before == after


@pytest.mark.parametrize("size", [1, 3])
def test_batches_do_not_matter(
    talks: Shards, preferences: Shards, dishes: Shards, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect([talks, preferences, dishes]).to_json()
    monkeypatch.setattr("vlmdata.stats._BATCH", size)
    assert collect([talks, preferences, dishes]).to_json() == whole


def test_a_broken_shard_is_named(talks: Shards, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes((talks.path / "manifest.json").read_bytes())
    (tmp_path / talks.files[0].name).write_bytes(b"PAR1 broken PAR1")
    with pytest.raises(DataError, match="data-00000-of-00001.parquet cannot be read"):
        collect([open_shards(tmp_path)])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 60])
def test_terminal_fits_and_needs_no_colour(
    talks: Shards, preferences: Shards, dishes: Shards, encoding: str, width: int
) -> None:
    for one in (talks, preferences, dishes):
        text = terminal(collect([one]), width=width, color=False, encoding=encoding)
        text.encode(encoding)
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text and text.endswith("\n") and "p50" in text
        assert "read = " in text and one.manifest.licence.split()[0] in text
        assert ("#" if encoding == "ascii" else "█") in text
    assert "chosen" in text or "waffles" in text


def test_terminal_shows_texts_as_they_are(tmp_path: Path) -> None:
    answers = ["[bold]x[/bold]", "[/]", "\x1b[31mred", "東京都", ":smile:"]
    rows = [{"images": [image(1)], "texts": pairs(("q", answer))} for answer in answers for _ in range(2)]
    done = convert("the_cauldron", write_parquet(tmp_path / "x.parquet", rows, CAULDRON), tmp_path / "o", config="vsr")
    text = terminal(collect([open_shards(done.out)]), width=80, color=False, encoding="utf-8")
    assert "[bold]x[/bold]" in text and "[/]" in text and "東京都" in text and ":smile:" in text
    assert "\x1b" not in text


def test_command_prints_and_writes_exact_numbers(talks: Shards, preferences: Shards, tmp_path: Path) -> None:
    file = tmp_path / "new" / "stats.json"
    run = CliRunner().invoke(command, [str(talks.path), str(preferences.path), "--json", str(file)])
    assert run.exit_code == 0, run.output
    assert max(map(len, run.stdout.splitlines())) <= max(80, len(f"numbers in {file}"))
    values = json.loads(file.read_text())
    assert values["records"] == 17 and set(values["distributions"]) <= set(MEASURES)
    for spread in values["distributions"].values():
        assert sum(spread["counts"]) == spread["count"] and len(spread["edges"]) == len(spread["counts"]) + 1
    piped = CliRunner().invoke(command, [str(talks.path), str(preferences.path), "--json", "-"])
    assert json.loads(piped.stdout) == values


def test_a_user_s_mistakes_are_told_at_once(talks: Shards, tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("{}")
    runner = CliRunner()
    assert isinstance(runner.invoke(command, [str(talks.path), "--json", str(there)]).exception, OutputExistsError)
    assert there.read_text() == "{}"
    assert runner.invoke(command, [str(talks.path), "--json", str(there), "--overwrite"]).exit_code == 0
    assert isinstance(runner.invoke(command, [str(tmp_path / "none")]).exception, MissingError)
    with pytest.raises(ConfigError, match="is a folder"):
        check_file(tmp_path, "--json", overwrite=True)
    with pytest.raises(OutputExistsError, match="beside its folder"):
        check_file(talks.path / "stats.json", "--json", overwrite=False)
    with pytest.raises(ConfigError, match="cannot be made"):
        check_file(there / "x" / "y.json", "--json", overwrite=False)


numbers = st.one_of(
    st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=80).map(lambda values: np.array(values, np.int64)),
    st.lists(st.integers(0, 30), min_size=1, max_size=80).map(lambda values: np.array(values, np.int32)),
    st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=80).map(np.array),
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=60).map(lambda values: np.array([*values, 1e7])),
)


@settings(max_examples=300, deadline=None)
@given(numbers, st.integers(1, 20))
def test_histograms_count_every_number_once(values: np.ndarray[Any, Any], most: int) -> None:
    spread = distribution(values)
    assert spread is not None
    assert sum(spread.counts) == spread.count == len(values)
    assert list(spread.edges) == sorted(set(spread.edges)) and len(spread.edges) == len(spread.counts) + 1
    assert spread.edges[0] <= spread.min <= spread.p5 <= spread.p50 <= spread.p95 <= spread.max <= spread.edges[-1]
    assert {spread.p5, spread.p25, spread.p50, spread.p75, spread.p95} <= set(values.tolist())
    assert len(spread.counts) <= 40
    bins = list(spread.bins(most))
    assert sum(found.count for found in bins) == len(values) and len(bins) <= most
    ordered = np.array(spread.edges)
    for found, after in zip(bins, bins[1:], strict=False):
        assert found.low in ordered and found.high == after.low
    json.dumps(spread.to_json(), allow_nan=False)


def test_long_tails_share_a_bin() -> None:
    spread = distribution(np.array([*range(100)] * 20 + [10**6]))
    assert spread is not None and spread.counts[-1] == 1 and spread.step <= 10
    assert list(spread.bins())[-1].label.startswith("≥ ") and list(spread.bins())[-1].high == 10**6
    assert distribution(np.array([], np.int32)) is None


@given(st.floats(-1e12, 1e12))
def test_short_numbers_are_short(value: float) -> None:
    assert len(compact(abs(value))) <= 6
    assert re.fullmatch(r"-?[\d,]+(\.\d+)?", number(value))


def test_shares_are_never_rounded_to_nothing_or_all() -> None:
    told = [percent(0, 9), percent(1, 1000), percent(1, 3), percent(999, 1000), percent(9, 9)]
    assert told == ["0 %", "under 1 %", "33 %", "over 99 %", "100 %"]
