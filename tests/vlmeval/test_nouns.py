from __future__ import annotations

import json
from pathlib import Path

import amber_world
import pytest

from vlmeval.metrics import nouns
from vlmeval.run import evaluate

WORDS = "bus dog knife leave man people person tennis glass sunglasses can hot watch child box bookshelf mouse".split()
FIND = nouns.build([*WORDS, "TV", "e-book", "light"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("two buses and a bus", ["bus", "bus"]),
        ("people, persons, men and children", ["people", "person", "man", "child"]),
        ("leaves on the knives", ["leave", "knife"]),
        ("a tennis game", ["tennis"]),
        ("glasses, sunglasses and a glass", ["glass", "sunglasses", "glass"]),
        ("a dog can be seen", ["dog"]),
        ("a trash can, two cans and a red can", ["can", "can", "can"]),
        ("a hot dog, hot water and a hot.", ["dog", "hot"]),
        ("they watch a watch to watch", ["watch"]),
        ("Dog and Dogs", []),
        ("a TV and tv", ["TV"]),
        ("the dog's boxes' mice", ["dog", "box", "mouse"]),
        ("an e-book, bookshelves", ["e-book", "bookshelf"]),
        ("dog-friendly can't cannot", []),
        ("", []),
        ("¡dog! 犬 dog,dog", ["dog", "dog", "dog"]),
    ],
)
def test_finding(text: str, found: list[str]) -> None:
    assert FIND(text) == found


@pytest.mark.parametrize(
    ("word", "forms"),
    [
        ("city", ("cities",)),
        ("toy", ("toys",)),
        ("box", ("boxes",)),
        ("church", ("churches",)),
        ("snowman", ("snowmen",)),
        ("human", ("humans",)),
        ("policewoman", ("policewomen",)),
        ("scissors", ("scissor",)),
        ("glass", ("glasses",)),
        ("canvas", ("canvases",)),
        ("sheep", ()),
        ("goldfish", ("goldfishes",)),
        ("tomato", ("tomatoes",)),
        ("piano", ("pianos",)),
        ("scarf", ("scarves", "scarfs")),
        ("grandchild", ("grandchildren",)),
        ("news", ()),
    ],
)
def test_rules_for_any_vocabulary(word: str, forms: tuple[str, ...]) -> None:
    assert nouns.plurals(word) == forms


def test_a_vocabulary_word_stands_for_itself() -> None:
    assert nouns.build(["person", "people"])("people person") == ["people", "person"]
    assert nouns.build(["person", "cat"])("people") == []  # reviewed: AMBER has people as a word of its own
    assert nouns.build(["policeman"])("policemen") == ["policeman"]


def test_the_reviewed_table_is_of_ambers_vocabulary(real: Path) -> None:
    """Every word has its row, no form stands for two words, no form hides a word."""
    relation = json.loads((real / "relation.json").read_text())
    vocabulary = {*relation, *(word for others in relation.values() for word in others)}
    reviewed = nouns._reviewed()
    assert set(reviewed) == vocabulary and len(vocabulary) == 418
    forms = [form for others, _ in reviewed.values() for form in others]
    assert len(forms) == len(set(forms))
    assert not set(forms) & vocabulary
    find = nouns.build(vocabulary)
    assert all(find(f"a {word}") == [word] for word in vocabulary)


@pytest.mark.parametrize("name", ["g_mixed", "g_truth_words"])
def test_plain_captions_give_the_recorded_nouns(real: Path, name: str) -> None:
    relation = json.loads((real / "relation.json").read_text())
    vocabulary = {*relation, *(word for others in relation.values() for word in others)}
    find, folder = nouns.build(vocabulary), real / "golden" / name
    recorded = {row["id"]: row["vocab_nouns"] for row in json.loads((folder / "official.per_item.json").read_text())}
    for row in json.loads((folder / "responses.json").read_text()):
        assert find(row["response"]) == [word for word in recorded[row["id"]] if word in vocabulary]


def test_captions_of_invented_words_score_as_documented(real: Path, tmp_path: Path) -> None:
    notes = [note for note in json.loads((real / "annotations.json").read_text()) if note["type"] == "generative"]
    answers = {note["id"]: "There is " + ", ".join(f"a {word}" for word in note["hallu"]) + "." for note in notes}
    report = evaluate("amber", data=real, responses=amber_world.respond(tmp_path / "r.json", answers))
    assert report["official"] == {"generative": {"chair": 91.9, "cover": 2.5, "hal": 100.0, "cog": 90.8}}
    silent = dict.fromkeys(answers, "")
    report = evaluate("amber", data=real, responses=amber_world.respond(tmp_path / "r.json", silent))
    assert report["official"] == {"generative": {"chair": 0.0, "cover": 0.0, "hal": 0.0, "cog": 0.0}}
