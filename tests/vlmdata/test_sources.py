from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawfiles import chat, encoded, image, pairs, rlaif_row

import vlmdata
from vlmdata.errors import RecordError
from vlmdata.marks import split_marks
from vlmdata.reasons import REASONS
from vlmdata.records import Image, Message, Part, Preference, Sample, text
from vlmdata.records import image as place
from vlmdata.source import Options, load, names

PIXELS = encoded()
PHOTO = {"bytes": PIXELS, "path": None}


def convert(name: str, row: Any, **options: Any) -> list[Any]:
    return load(name).convert(row, "row", Options(**options))


def reason(name: str, row: Any, **options: Any) -> str:
    with pytest.raises(RecordError) as caught:
        convert(name, row, **options)
    return caught.value.reason


def written(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(m.role, "".join("<image>" if p.type == "image" else str(p.text) for p in m.content)) for m in messages]


def test_cauldron_keeps_all_turns_and_all_images() -> None:
    row = {"images": [image(0), image(1)], "texts": pairs(("One?", "1"), ("Two?", "2"))}
    (sample,) = convert("the_cauldron", row, config="nlvr2")
    assert len(sample.images) == 2 and sample.id == "row"
    assert written(sample.messages) == [
        ("user", "<image><image>One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
    ]
    assert sample.meta == {"config": "nlvr2", "origin": ["test"]}


def test_cauldron_split_gives_every_pair_all_images() -> None:
    row = {"images": [image(0), image(1)], "texts": pairs(("One?", "1"), ("Two?", "2"))}
    first, second = convert("the_cauldron", row, turns="split", image_position="last")
    assert (first.id, second.id) == ("row#0", "row#1")
    assert written(first.messages) == [("user", "One?<image><image>"), ("assistant", "1")]
    assert written(second.messages) == [("user", "Two?<image><image>"), ("assistant", "2")]
    assert first.images == second.images and len(second.images) == 2


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"images": [PHOTO], "texts": pairs(("One?", " "))}, "blank_answer"),
        ({"images": [PHOTO], "texts": pairs(("One?", None))}, "blank_answer"),
        ({"images": [PHOTO], "texts": pairs(("One?", "1"), ("", "2"))}, "empty_turn"),
        ({"images": [], "texts": pairs(("", "2"))}, "empty_turn"),
        ({"images": [PHOTO], "texts": []}, "no_messages"),
        ({"images": [PHOTO], "texts": None}, "wrong_fields"),
        ({"images": [PHOTO], "texts": "text"}, "wrong_fields"),
        ({"images": [PHOTO], "texts": [3]}, "wrong_fields"),
        ({"images": [None], "texts": pairs(("One?", "1"))}, "image_missing"),
        ({"images": [{"bytes": None, "path": None}], "texts": pairs(("One?", "1"))}, "image_missing"),
        ({"images": [{"bytes": None, "path": "http://x/y.jpg"}], "texts": pairs(("One?", "1"))}, "image_remote"),
    ],
)
def test_cauldron_rejects(row: dict[str, Any], expected: str) -> None:
    assert reason("the_cauldron", row) == expected


def test_cauldron_picture_alone_is_a_question() -> None:
    (sample,) = convert("the_cauldron", {"images": [PHOTO], "texts": pairs(("", "A cat."))})
    assert written(sample.messages) == [("user", "<image>"), ("assistant", "A cat.")]


def test_rlaif_becomes_a_preference() -> None:
    (pair,) = convert("rlaif_v", rlaif_row(7))
    assert isinstance(pair, Preference)
    assert written(pair.prompt) == [("user", "<image>What is shown in 7?")]
    assert written(pair.chosen) == [("assistant", "A gradient.")]
    assert written(pair.rejected) == [("assistant", "A gradient and a dog.")]
    assert pair.meta["idx"] == "7" and "image_path" not in pair.meta
    (last,) = convert("rlaif_v", rlaif_row(7), image_position="last")
    assert written(last.prompt) == [("user", "What is shown in 7?<image>")]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"question": " "}, "empty_turn"),
        ({"chosen": ""}, "blank_answer"),
        ({"rejected": None}, "blank_answer"),
        ({"rejected": "A gradient."}, "same_answers"),
        ({"image": None}, "image_missing"),
        ({"question": 3}, "wrong_fields"),
    ],
)
def test_rlaif_rejects(changed: dict[str, Any], expected: str) -> None:
    assert reason("rlaif_v", rlaif_row(**changed)) == expected


def test_food_has_label_prompt_and_the_name_in_words() -> None:
    (sample,) = convert("food101", {"image": PHOTO, "label": 16})
    assert sample.label == 16
    assert written(sample.messages) == [("user", "<image>What food is this?"), ("assistant", "cheesecake")]
    (named,) = convert("food101", {"image": PHOTO, "label": "apple_pie"}, prompt="")
    assert named.label == 0 and written(named.messages) == [("user", "<image>"), ("assistant", "apple pie")]
    (other,) = convert("food101", {"image": PHOTO, "label": 1}, label_names=("soup", "stew"), prompt="Dish?")
    assert written(other.messages) == [("user", "<image>Dish?"), ("assistant", "stew")]


def test_food_classes_stand_in_the_published_order() -> None:
    classes = load("food101").label_names
    assert len(set(classes)) == 101
    assert (classes[0], classes[6], classes[16], classes[17], classes[100]) == (
        "apple_pie",
        "beignets",
        "cheesecake",
        "cheese_plate",
        "waffles",
    )
    assert [name for name in classes if name != "cheesecake"] == sorted(set(classes) - {"cheesecake"})


@pytest.mark.parametrize("label", [101, -1, None, True, "cake", 1.0])
def test_food_rejects_unknown_labels(label: Any) -> None:
    assert reason("food101", {"image": PHOTO, "label": label}) == "unknown_label"


def test_football_caption() -> None:
    (sample,) = convert("football", {"image": PHOTO, "text": "A goal."})
    assert written(sample.messages) == [("user", "<image>Describe this image."), ("assistant", "A goal.")]
    (alone,) = convert("football", {"image": PHOTO, "text": "A goal."}, prompt="")
    assert written(alone.messages)[0] == ("user", "<image>")
    assert reason("football", {"image": PHOTO, "text": " "}) == "blank_answer"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("<image>Who?", (place(), text("Who?"))),
        ("<image>\nWho?", (place(), text("Who?"))),
        ("Who?\n<image>", (text("Who?"), place())),
        ("Compare <image> and <image>.", (text("Compare"), place(), text("and"), place(), text("."))),
        ("<image><image>", (place(), place())),
        ("  no mark  ", (text("  no mark  "),)),
        ("", (text(""),)),
    ],
)
def test_marks_stay_where_they_are(value: str, expected: tuple[Part, ...]) -> None:
    assert split_marks(value) == expected


def test_json_marks_anywhere_and_the_same_image_twice() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "<image>Who are they?"},
            {"role": "assistant", "content": "Players."},
            {"role": "user", "content": "What are they doing?<image>"},
            {"role": "assistant", "content": "Celebrating."},
        ],
        "images": ["1.jpg", "1.jpg"],
    }
    (sample,) = convert("ocr_json", row, image_position="last")
    assert written(sample.messages)[0] == ("user", "<image>Who are they?")
    assert written(sample.messages)[2] == ("user", "What are they doing?<image>")
    assert [image.path for image in sample.images] == ["1.jpg", "1.jpg"]


def test_json_conversations_with_aliases_and_system() -> None:
    row = {
        "id": 12,
        "conversations": [
            {"from": "Human", "value": "<image>\nRead it."},
            {"from": "function_call", "value": "{}"},
            {"from": "observation", "value": "42"},
            {"from": "gpt", "value": "AB12"},
        ],
        "image": "x.png",
        "system": "You read plates.",
    }
    (sample,) = convert("ocr_json", row)
    assert [message.role for message in sample.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert sample.meta == {"raw_id": "12"}


def test_json_content_lists_bring_their_own_images_in_order() -> None:
    content = [
        {"type": "image_url", "value": "1.jpg"},
        {"type": "text", "value": "Both?"},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}},
        {"type": "image"},
    ]
    (sample,) = convert("ocr_json", chat(content, [{"type": "text", "text": "Yes."}], [PHOTO]))
    assert sample.images == (Image(path="1.jpg"), Image(data=b"\xff\xd8\xff"), Image(data=PIXELS))
    assert written(sample.messages)[0] == ("user", "<image>Both?<image><image>")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("<image>Hi", "Yo", []), "image_count"),
        (chat("<image>Hi", "Yo"), "image_count"),
        (chat("Hi", "Yo", ["1.jpg"]), "image_count"),
        (chat("<image><image>Hi", "Yo", ["1.jpg"]), "image_count"),
        (chat("<image>Hi", "", ["1.jpg"]), "blank_answer"),
        (chat("<image>Hi", None, ["1.jpg"]), "blank_answer"),
        (chat("", "Yo"), "empty_turn"),
        (chat("Hi", "<image>", ["1.jpg"]), "image_outside_user_turn"),
        (chat("<image>Hi", "Yo", [""]), "image_missing"),
        (chat("<image>Hi", "Yo", [3]), "wrong_fields"),
        (chat("<image>Hi", "Yo", ["https://x.org/1.jpg"]), "image_remote"),
        (chat("<image>Hi", "Yo", [{"bytes": "not base64!"}]), "wrong_fields"),
        (chat(3, "Yo"), "wrong_fields"),
        (chat([{"type": "video", "value": "v"}], "Yo"), "bad_part"),
        (chat([{"type": "text"}], "Yo"), "bad_part"),
        (chat([7], "Yo"), "bad_part"),
        (chat("\ud800", "Yo"), "bad_text"),
        ({"messages": []}, "no_messages"),
        ({"messages": "Hi"}, "wrong_fields"),
        ({"messages": None}, "wrong_fields"),
        ({"messages": ["Hi"]}, "wrong_fields"),
        ({"messages": [{"text": "Hi"}]}, "wrong_fields"),
        ({"messages": [{"role": "narrator", "content": "Hi"}]}, "unknown_role"),
        ({"messages": [{"role": None, "content": "Hi"}]}, "unknown_role"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no_answer"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "answer_first"),
        (chat("Hi", "Yo", system=5), "wrong_fields"),
        ({"messages": [*chat("Hi", "Yo")["messages"], {"role": "system", "content": "Late"}]}, "system_late"),
    ],
)
def test_json_rejects(row: dict[str, Any], expected: str) -> None:
    assert reason("ocr_json", row) == expected


def test_every_reason_is_in_the_table_and_used() -> None:
    package = Path(vlmdata.__file__).parent
    raised: set[str] = set()
    written: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and path.name != "reasons.py":
                written.add(node.value)
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name == "RecordError" and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                raised.add(node.args[0].value)  # type: ignore[attr-defined]
    assert raised <= set(REASONS)
    assert set(REASONS) <= written


def test_literal_marks_in_content_lists_are_text() -> None:
    (sample,) = convert("ocr_json", chat([{"type": "text", "text": "The tag <image> in HTML"}], "Yes."))
    assert sample.images == () and sample.messages[0].content[0].text == "The tag <image> in HTML"


def test_content_lists_may_bring_encoded_bytes() -> None:
    content = [{"type": "image", "bytes": PIXELS, "path": "a.jpg"}, {"type": "text", "text": "Hi"}]
    (record,) = convert("ocr_json", chat(content, "Yo"))
    assert record.images[0].data == PIXELS and record.images[0].path == "a.jpg"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from(["user", "gpt", "<image>", "a.jpg", "text", "image"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "type", "text", "bytes", "path", "user", "assistant"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
FIELDS = sorted({field for name in names() for columns in load(name).columns for field in columns})


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(names()),
    row=st.dictionaries(st.sampled_from([*FIELDS, "system", "id"]), VALUES),
    turns=st.sampled_from(["keep", "split"]),
)
def test_any_row_becomes_records_or_a_reject(name: str, row: dict[str, Any], turns: Any) -> None:
    try:
        records = load(name).convert(row, "row", Options(turns=turns))
    except RecordError as error:
        assert error.reason in REASONS
        return
    assert records and all(isinstance(record, Sample | Preference) for record in records)
