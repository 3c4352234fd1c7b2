from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rawfiles import chat, encoded
from trl.data_utils import prepare_multimodal_messages

from vlmdata.errors import ConfigError, DataError, MissingError, RecordError
from vlmdata.records import Message, Preference, Sample
from vlmdata.source import Options, kind_of, load, records

PHOTO = {"bytes": encoded(), "path": None}
TWO = [PHOTO, {"bytes": encoded(seed=1), "path": None}]
HI, YO, NO = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "assistant", "content": "No"},
)


def convert(name: str, row: Any, **options: Any) -> Any:
    (record,) = load(name).convert(row, "row", Options(**options))
    return record


def reason(name: str, row: Any, **options: Any) -> str:
    with pytest.raises(RecordError) as caught:
        convert(name, row, **options)
    return caught.value.reason


def written(messages: tuple[Message, ...]) -> list[str]:
    texts = (
        (m.role, "".join("<image>" if part.type == "image" else str(part.text) for part in m.content)) for m in messages
    )
    return [f"{role}: {text}" for role, text in texts]


def pair(record: Any) -> list[list[str]]:
    assert isinstance(record, Preference)
    return [written(record.prompt), written(record.chosen), written(record.rejected)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI, YO], "images": [PHOTO]},
        {"messages": [HI, YO], "image": PHOTO},
        {"prompt": [HI], "completion": [YO], "images": [PHOTO]},
        {"prompt": "Hi", "completion": "Yo", "image": PHOTO},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Hi"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yo", "image": None}]},
            ],
            "images": [PHOTO],
        },
    ],
)
def test_trl_conversations_in_all_their_forms(row: dict[str, Any]) -> None:
    record = convert("trl", row)
    assert isinstance(record, Sample) and len(record.images) == 1
    assert written(record.messages) == ["user: <image>Hi", "assistant: Yo"]


def test_trl_preferences_and_where_their_images_go() -> None:
    row = {"prompt": [HI], "chosen": [YO], "rejected": [NO], "images": TWO}
    assert pair(convert("trl", row)) == [["user: <image><image>Hi"], ["assistant: Yo"], ["assistant: No"]]
    assert pair(convert("trl", row, image_position="last"))[0] == ["user: Hi<image><image>"]
    plain = {"prompt": "A mark is <image>", "chosen": "<image>", "rejected": "No", "image": PHOTO}
    (prompt,), (chosen,), _ = pair(convert("trl", plain))
    assert prompt == "user: <image>A mark is <image>" and chosen == "assistant: <image>"
    assert len(convert("trl", plain).chosen[0].content) == 1, "a mark in a text is text"
    inside = {**row, "chosen": [{"role": "assistant", "content": [{"type": "image"}]}]}
    assert reason("trl", inside) == "image_outside_user_turn"


PARTS = [{"type": "image"}, {"type": "text", "text": "Hi"}]


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(
    "messages",
    [
        [HI, YO],
        [{"role": "system", "content": "Be brief."}, HI, YO, HI, NO],
        [{"role": "user", "content": PARTS}, YO],
        [{"role": "user", "content": PARTS}, YO, HI, NO],
        [HI, YO, {"role": "user", "content": PARTS}, NO],
        [{"role": "user", "content": [*PARTS, *PARTS]}, YO],
    ],
)
def test_trl_rows_are_placed_as_trl_places_them(messages: list[dict[str, Any]], count: int) -> None:
    images = [PHOTO, {"bytes": encoded(seed=1), "path": None}][:count]
    row = {"messages": messages, "images": images}
    try:
        expected = prepare_multimodal_messages(messages, list(images))
    except ValueError:
        assert reason("trl", row) == "image_count"
        return
    record = convert("trl", row)
    ours = [[(part.type, part.text) for part in message.content] for message in record.messages]
    assert ours == [[(part["type"], part.get("text")) for part in m["content"]] for m in expected]
    placed = [part["image"] for m in expected for part in m["content"] if part["type"] == "image"]
    assert [image.data for image in record.images] == [image["bytes"] for image in placed]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": "Hi"}, "wrong_fields"),
        ({"prompt": 3, "completion": "Yo"}, "wrong_fields"),
        ({"prompt": "Hi", "completion": None}, "wrong_fields"),
        ({"messages": [HI, {"role": "assistant", "content": None, "tool_calls": []}]}, "blank_answer"),
        ({"prompt": "Hi", "chosen": "Yo", "rejected": "Yo"}, "same_answers"),
        ({"prompt": [HI, YO], "chosen": "A", "rejected": "B"}, "prompt_answered"),
    ],
)
def test_trl_rejects(row: dict[str, Any], expected: str) -> None:
    assert reason("trl", row) == expected


def test_a_source_of_both_kinds_goes_by_columns_and_then_by_what_was_decided() -> None:
    trl = load("trl")
    assert kind_of(trl, frozenset({"prompt", "chosen", "rejected", "images"})) == "preference"
    assert kind_of(trl, frozenset({"messages", "images"})) == "messages"
    assert kind_of(trl, frozenset({"prompt"})) is None
    both = {"messages": [HI, YO], "prompt": "Hi", "chosen": "A", "rejected": "B"}
    assert isinstance(convert("trl", both | {"rejected": None}, kind="messages"), Sample)
    assert reason("trl", both, kind="messages") == "wrong_fields"
    assert isinstance(convert("trl", both, kind="preference"), Preference)
    # A row without the second answer, in a file of pairs, is a reject and not a conversation.
    assert reason("trl", {"prompt": "Hi", "chosen": "A"}, kind="preference") == "blank_answer"


def test_sharegpt_turns_tools_and_pairs() -> None:
    turns = [
        {"from": "human", "value": "<image>Weather?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "Sunny."},
    ]
    row = {"conversations": turns, "images": ["a.jpg"], "system": "S", "tools": '[{"name": "w"}]', "id": 7}
    record = convert("sharegpt", row)
    assert [message.role for message in record.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert record.meta == {"id": 7, "tools": '[{"name": "w"}]'}
    ranked = {
        "conversations": turns[:1],
        "images": ["a.jpg"],
        "chosen": {"from": "gpt", "value": "Sun."},
        "rejected": {"from": "gpt", "value": "Rain."},
    }
    assert pair(convert("sharegpt", ranked)) == [["user: <image>Weather?"], ["assistant: Sun."], ["assistant: Rain."]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": []}, "image_count"),
        ({"videos": ["a.mp4"]}, "wrong_fields"),
        ({"chosen": {"from": "gpt", "value": "<image>"}}, "image_outside_user_turn"),
        ({"chosen": {"from": "human", "value": "Sun."}}, "no_answer"),
        ({"chosen": {"from": "gpt"}}, "wrong_fields"),
        ({"chosen": 3}, "wrong_fields"),
        ({"rejected": {"from": "gpt", "value": "Sun."}}, "same_answers"),
        ({"conversations": None}, "wrong_fields"),
        ({"conversations": [{"from": "poet", "value": "<image>"}]}, "unknown_role"),
    ],
)
def test_sharegpt_rejects(change: dict[str, Any], expected: str) -> None:
    row = {
        "conversations": [{"from": "human", "value": "<image>Weather?"}],
        "images": ["a.jpg"],
        "chosen": {"from": "gpt", "value": "Sun."},
        "rejected": {"from": "gpt", "value": "Rain."},
    }
    assert reason("sharegpt", row | change, kind="preference") == expected


def test_alpaca_history_input_and_images() -> None:
    row = {
        "instruction": "Translate.",
        "input": "Bonjour",
        "output": "Hello",
        "history": [["Hi", "Yo"]],
        "system": "S",
        "images": ["a.jpg"],
    }
    assert written(convert("alpaca", row).messages) == [
        "system: S",
        "user: <image>Hi",
        "assistant: Yo",
        "user: Translate.\nBonjour",
        "assistant: Hello",
    ]
    assert written(convert("alpaca", row, image_position="last").messages)[1] == "user: Hi<image>"
    marked = row | {"instruction": "See <image>: translate."}
    assert written(convert("alpaca", marked).messages)[3] == "user: See<image>: translate.\nBonjour"
    ranked = {"instruction": "<image>Who?", "chosen": "A", "rejected": "B", "images": ["a.jpg"]}
    assert pair(convert("alpaca", ranked)) == [["user: <image>Who?"], ["assistant: A"], ["assistant: B"]]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Hi", "output": ""}, "blank_answer"),
        ({"instruction": "", "output": "Yo"}, "empty_turn"),
        ({"instruction": "<image><image>", "output": "Yo", "images": ["a.jpg"]}, "image_count"),
        ({"instruction": "Hi", "output": "Yo", "history": ["a"]}, "wrong_fields"),
        ({"instruction": "Hi", "output": "Yo", "history": "a"}, "wrong_fields"),
        ({"instruction": "Hi", "output": ["Yo"]}, "wrong_fields"),
        ({"instruction": "Hi", "chosen": ["A"], "rejected": "B"}, "wrong_fields"),
    ],
)
def test_alpaca_rejects(row: dict[str, Any], expected: str) -> None:
    assert reason("alpaca", row) == expected


def test_swift_gives_images_without_a_mark_a_place_in_front() -> None:
    row = {
        "messages": [*chat("Hi", "Yo")["messages"], *chat("<image>And?", "So.")["messages"]],
        "images": ["a.jpg", "b.jpg", "c.jpg"],
        "objects": {"bbox": [[1, 2, 3, 4]], "ref": ["cat"]},
    }
    record = convert("swift", row)
    assert written(record.messages)[::2] == ["user: <image><image>Hi", "user: <image>And?"]
    assert [image.path for image in record.images] == ["a.jpg", "b.jpg", "c.jpg"]
    assert record.meta["objects"] == {"bbox": [[1, 2, 3, 4]], "ref": ["cat"]}
    query = {"query": "Hi", "response": "Yo", "history": [["a", "b"]], "images": "a.jpg"}
    assert written(convert("swift", query).messages) == ["user: <image>a", "assistant: b", "user: Hi", "assistant: Yo"]


def test_swift_rejected_response_and_rejected_messages() -> None:
    row = chat("<image>Hi", "Yo", ["a.jpg"], rejected_response="No")
    expected = [["user: <image>Hi"], ["assistant: Yo"], ["assistant: No"]]
    assert pair(convert("swift", row)) == expected
    whole = chat("<image>Hi", "Yo", ["a.jpg"], rejected_messages=chat("<image>Hi", "No")["messages"])
    assert pair(convert("swift", whole | {"rejected_images": ["a.jpg"]})) == expected
    assert reason("swift", whole | {"rejected_images": ["b.jpg"]}) == "wrong_fields"
    assert reason("swift", row | {"rejected_response": "Yo"}) == "same_answers"
    assert reason("swift", row | {"rejected_response": None}, kind="preference") == "blank_answer"
    assert reason("swift", row, kind="messages") == "wrong_fields"
    apart = chat("<image>Hi", "Yo", ["a.jpg"], rejected_messages=chat("<image>Bye", "No")["messages"])
    assert reason("swift", apart) == "no_messages"
    assert reason("swift", chat("<image><image>Hi", "Yo", ["a.jpg"])) == "image_count"


def test_llava_rows_with_and_without_a_picture() -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bus."}]
    record = convert("llava_json", {"id": "1", "image": "coco/1.jpg", "conversations": turns})
    assert written(record.messages) == ["user: <image>What?", "assistant: A bus."]
    assert record.images[0].path == "coco/1.jpg" and record.meta == {"id": "1"}
    text = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Nothing."}]
    assert convert("llava_json", {"conversations": text}).images == ()
    assert reason("llava_json", {"image": "a.jpg", "conversations": text}) == "image_count"
    assert reason("llava_json", {"image": "a.jpg", "conversations": None}) == "wrong_fields"


def test_rlhf_v_reads_the_pair_out_of_its_text() -> None:
    text = {"question": "Who?", "chosen": "A", "rejected": "B"}
    row = {"image": PHOTO, "text": json.dumps(text), "ds_name": "RLHF-V", "idx": 17, "origin_split": "{}"}
    record = convert("rlhf_v", row)
    assert pair(record) == [["user: <image>Who?"], ["assistant: A"], ["assistant: B"]]
    assert record.meta == {"ds_name": "RLHF-V", "idx": "17", "origin_split": "{}"}
    assert pair(convert("rlhf_v", row | {"text": text}, image_position="last"))[0] == ["user: Who?<image>"]
    for wrong in ("Who?", "[1]", "{", None, 3, "[" * 100_000):
        assert reason("rlhf_v", row | {"text": wrong}) == "wrong_fields"
    assert reason("rlhf_v", row | {"text": json.dumps(text | {"question": " "})}) == "empty_turn"


def test_pairs_places_marks_and_keeps_the_rest() -> None:
    row = {"image": "a.jpg", "question": "Who?", "chosen": "A", "rejected": "<image>", "annotator": "7"}
    record = convert("pairs", row)
    assert pair(record) == [["user: <image>Who?"], ["assistant: A"], ["assistant: <image>"]]
    assert record.meta == {"annotator": "7"}
    several = {"images": ["a.jpg", "b.jpg"], "prompt": "<image>or<image>?", "chosen": "A", "rejected": "B"}
    assert pair(convert("pairs", several))[0] == ["user: <image>or<image>?"]
    assert reason("pairs", several | {"prompt": "<image>?"}) == "image_count"
    assert reason("pairs", row | {"image": None}) == "image_missing"
    assert reason("pairs", row | {"question": None}) == "empty_turn"


def test_table_rows() -> None:
    row = {"image": "a.jpg", "question": "Who?", "answer": "007", "split": "x", "note": None}
    record = convert("table", row)
    assert written(record.messages) == ["user: <image>Who?", "assistant: 007"] and record.meta == {"split": "x"}
    caption = {"image": "a.jpg", "caption": "A cat with <image> on it"}
    assert written(convert("table", caption).messages)[0] == "user: <image>Describe this image."
    assert written(convert("table", caption, prompt="").messages)[0] == "user: <image>"
    assert len(convert("table", caption).images) == 1
    assert reason("table", row | {"image": None}) == "image_missing"
    assert reason("table", row | {"answer": None}) == "blank_answer"


def test_imagefolder_rows() -> None:
    caption = convert("imagefolder", {"image": "a.jpg", "text": "A cat.", "author": "x"})
    assert written(caption.messages) == ["user: <image>What is shown in this image?", "assistant: A cat."]
    assert caption.meta == {"author": "x"} and caption.label is None
    several = {"file_names": ["a.jpg", "b.jpg"], "question": "What changed?", "answer": "All."}
    assert written(convert("imagefolder", several).messages)[0] == "user: <image><image>What changed?"
    labelled = convert("imagefolder", {"image": "a.jpg", "label": "apple_pie"}, label_names=("apple_pie", "tea"))
    assert labelled.label == 0 and written(labelled.messages)[1] == "assistant: apple pie"
    assert convert("imagefolder", {"image": "a.jpg", "label": 1}, label_names=("apple_pie", "tea")).label == 1
    loose = convert("imagefolder", {"image": "a.jpg", "label": "apple_pie", "text": "Pie."})
    assert loose.label is None and loose.meta == {"label": "apple_pie"}
    for label in ("cake", 2, -1, True, 1.0):
        assert reason("imagefolder", {"image": "a.jpg", "label": label}, label_names=("pie", "tea")) == "unknown_label"
    assert reason("imagefolder", {"text": "A cat."}) == "image_missing"
    assert reason("imagefolder", {"image": "a.jpg"}) == "blank_answer"


def info(folder: Path, **entries: Any) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    (folder / "x.json").write_text("[]")
    return folder


def located(folder: Path, config: str | None = "x") -> Any:
    locate = load("llamafactory").locate
    assert locate is not None
    return locate(folder, config)


def test_llamafactory_entries_name_columns_and_tags(tmp_path: Path) -> None:
    tags = {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it"}
    columns = {"messages": "talk", "images": "pics", "system": "sys"}
    folder = info(tmp_path, x={"file_name": "x.json", "formatting": "sharegpt", "columns": columns, "tags": tags})
    found = located(folder)
    assert found.kind == "messages" and found.files == (str(folder / "x.json"),)
    assert located(folder / "dataset_info.json") == found
    row = {
        "talk": [{"who": "me", "said": "<image>Hi"}, {"who": "it", "said": "Yo"}],
        "pics": ["a.jpg"],
        "sys": "S",
        "tools": "not named, not read",
    }
    options = Options(columns=found.columns, tags=found.tags, kind=found.kind)
    (record,) = records(load("llamafactory"), row, "row", options)
    assert isinstance(record, Sample)
    assert written(record.messages) == ["system: S", "user: <image>Hi", "assistant: Yo"] and record.meta == {}


def test_llamafactory_alpaca_is_the_default_and_ranking_makes_pairs(tmp_path: Path) -> None:
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "images": "image"}
    folder = info(tmp_path, x={"file_name": "x.json", "ranking": True, "columns": columns}, y={"file_name": "x.json"})
    found = located(folder)
    row = {"question": "Who?", "good": "A", "bad": "B", "image": "a.jpg"}
    (record,) = records(load("llamafactory"), row, "row", Options(columns=found.columns, kind=found.kind))
    assert pair(record) == [["user: <image>Who?"], ["assistant: A"], ["assistant: B"]]
    plain = located(folder, "y")
    raw = {"instruction": "a", "input": "b", "output": "c", "system": "not named, not read"}
    (record,) = records(load("llamafactory"), raw, "row", Options(columns=plain.columns, kind=plain.kind))
    assert isinstance(record, Sample) and written(record.messages) == ["user: a\nb", "assistant: c"]


@pytest.mark.parametrize(
    ("entry", "kind", "says"),
    [
        ({"hf_hub_url": "a/b", "columns": {"prompt": "q", "response": "r"}}, DataError, "convert alpaca a/b --columns"),
        ({"hf_hub_url": "a/b", "formatting": "sharegpt"}, DataError, "convert sharegpt a/b --out"),
        ({"script_url": "x"}, DataError, "loading script"),
        ({"file_name": "gone.json"}, MissingError, "names gone.json"),
        ({}, DataError, "has no file_name"),
        ([], DataError, "expected an object"),
        ({"file_name": "x.json", "formatting": "openai"}, DataError, "valid: alpaca, sharegpt"),
        ({"file_name": "x.json", "columns": {"kto_tag": "label"}}, DataError, "kto_tag"),
        ({"file_name": "x.json", "columns": {"messages": "m"}}, DataError, "not of alpaca"),
        ({"file_name": "x.json", "columns": ["m"]}, DataError, "expected an object of names"),
        ({"file_name": "x.json", "ranking": True}, DataError, "do not name chosen and rejected"),
    ],
)
def test_llamafactory_entries_that_cannot_be_read(tmp_path: Path, entry: Any, kind: Any, says: str) -> None:
    with pytest.raises(kind) as caught:
        located(info(tmp_path, x=entry))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_llamafactory_answers_that_are_not_ranked_are_left_out(tmp_path: Path) -> None:
    columns = {"prompt": "q", "response": "a", "chosen": "good", "rejected": "bad"}
    found = located(info(tmp_path, x={"file_name": "x.json", "columns": columns}))
    raw = {"q": "Who?", "a": "I.", "good": "A", "bad": "B"}
    (record,) = records(load("llamafactory"), raw, "row", Options(columns=found.columns, kind=found.kind))
    assert isinstance(record, Sample) and written(record.messages) == ["user: Who?", "assistant: I."]


def test_llamafactory_names_its_entries(tmp_path: Path) -> None:
    info(tmp_path, x={"file_name": "x.json"}, y={"file_name": "x.json"})
    for config in (None, "z"):
        with pytest.raises(ConfigError, match="valid: x, y"):
            located(tmp_path, config)
    with pytest.raises(MissingError, match="RAW of llamafactory"):
        located(tmp_path / "gone")
    (tmp_path / "dataset_info.json").write_text("[")
    with pytest.raises(DataError, match="is no JSON"):
        located(tmp_path)
