from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.errors import DataError
from vlmeval.metrics.objects import Names, Objects, packaged, parse

FIND = Objects(packaged().synonyms)


def classes(caption: str) -> list[str]:
    return [name for name, _ in FIND(caption)]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A dog, two DOGS and a puppy.", ["dog", "dog", "dog"]),
        ("Men, women and children", ["person", "person", "person"]),
        ("knives, buses, sheep, skis and scissors", ["knife", "bus", "sheep", "skis", "scissors"]),
        # Words that stand together, and words that only seem to.
        ("a hot dog and a hot-dog", ["hot dog", "hot dog"]),
        ("a dog, hot from running", ["dog"]),
        ("a hot. Dog", ["dog"]),
        ("the toilet seat beside a seat", ["toilet", "chair"]),
        ("a baby elephant with a baby", ["elephant", "person"]),
        ("an adult duckling", ["bird"]),
        ("a mother, dogs", ["person", "dog"]),
        ("a passenger train at the train station", ["train"]),
        ("a bus driver at the bus stop", ["person"]),
        ("a couple of dogs beside a couple", ["dog", "person"]),
        ("teddy bears and polar bears", ["teddy bear", "bear"]),
        ("a bow tie", ["tie"]),
        ("home plate", []),
        ("wine glasses and a glass", ["wine glass"]),
        ("stove top oven", ["oven"]),
        ("a stuffed animal", []),
        # Orange is a colour before a word that is no small one.
        ("an orange shirt, an orange, oranges", ["orange", "orange"]),
        ("an orange on a table", ["orange", "dining table"]),
        ("the man's tie; the dogs' bowls", ["person", "tie", "dog", "bowl"]),
        ("person’s umbrella", ["person", "umbrella"]),
        ("doghouse, catalog, carpet", []),
        ("", []),
        ("¡perro! 犬 dog/cat", ["dog", "cat"]),
    ],
)
def test_finding(caption: str, found: list[str]) -> None:
    assert classes(caption) == found


def test_all_80_classes_are_there_and_found_by_their_names() -> None:
    synonyms = packaged().synonyms
    assert len(synonyms) == 80
    for name in synonyms:
        assert FIND(f"There is a {name}.") == [(name, name)]
    listed = [name for names in synonyms.values() for name in names]
    assert len(set(listed)) == len(listed) and not set(listed) & set(synonyms)


def test_the_words_of_the_caption_are_given() -> None:
    assert FIND("Two armchairs and a TV set") == [("chair", "armchairs"), ("tv", "tv set")]


def test_only_the_classes_asked_for() -> None:
    find = Objects(["dog", "Wine_Glass", "unicorn"])
    assert find("a puppy, wine glasses, unicorns, a cat, hot dogs") == [
        ("dog", "puppy"),
        ("Wine_Glass", "wine glasses"),
        ("unicorn", "unicorns"),
        ("dog", "dogs"),
    ]


def test_a_class_beats_a_rule() -> None:
    """A dataset that has train stations as a class means them."""
    assert [name for name, _ in Objects(["train", "train station"])("a train station")] == ["train station"]


def test_the_form_of_the_official_list() -> None:
    names = parse("person, girl, boy\nbicycle, bike\n\n", "synonyms.txt")
    assert names == Names({"person": ["girl", "boy"], "bicycle": ["bike"]})
    find = Objects(names.synonyms, names)
    assert find("a boy on a bike beside a man and a baby elephant") == [("person", "boy"), ("bicycle", "bike")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no classes"),
        ("# only this", "names no classes"),
        ("dog\ndog, puppy", "line 2: expected a class and its other names, each class once"),
        ("dog\n~ what is this", "line 2: expected '~ phrase = class'"),
        (",", "line 1: expected a class"),
    ],
)
def test_tables_that_are_none(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse(text, "t.txt")


@given(st.text(max_size=60), st.lists(st.sampled_from(sorted(packaged().synonyms)), max_size=4))
def test_any_text_can_be_read(text: str, names: list[str]) -> None:
    found = FIND(f"{text} . {' , '.join(names)}")
    assert {name for name, _ in found} >= set(names)
    assert all(name in packaged().synonyms for name, _ in found)
