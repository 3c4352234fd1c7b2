"""Figures of texts, against values that reference implementations or papers give."""

from __future__ import annotations

import math
import random

import pytest

from vlmeval.metrics import captions, edits, fields, vqa
from vlmeval.metrics.sums import total

# Captions with their references, and what pycocoevalcap 1.2 gives for them (split at blanks, no tokenizer).
CAPTIONS = (
    ("a red square on green grass", ("a red square on the grass", "there is a red square")),
    ("two men play football in a stadium", ("two men play football", "men in a stadium play a game of football")),
    ("the dog runs with a ball", ("a dog runs after the ball on the grass",)),
    ("cat", ("a cat sits", "the cat")),
)
COCO = {
    "bleu4": 0.3290918116,
    "cider": (4.6200338642, 4.3834482913, 1.9535658246, 2.0431607177),
    "rouge_l": (0.8333333333, 0.7648902821, 0.3860759494, 0.6288659794),
}


def test_captions_score_as_in_coco_caption() -> None:
    said = [captions.words(text) for text, _ in CAPTIONS]
    true = [[captions.words(text) for text in texts] for _, texts in CAPTIONS]
    sums = total(captions.bleu_counts(one, some) for one, some in zip(said, true, strict=True))
    assert captions.bleu(sums) == pytest.approx(COCO["bleu4"], abs=1e-8)
    counted = captions.Frequencies(true)
    pairs = list(zip(said, true, strict=True))
    assert [counted.cider(*pair) for pair in pairs] == pytest.approx(COCO["cider"], abs=1e-8)
    assert [captions.rouge_l(*pair) for pair in pairs] == pytest.approx(COCO["rouge_l"], abs=1e-8)


def test_bleu_of_arrays_is_that_of_numbers() -> None:
    import numpy as np

    sums = [captions.bleu_counts(captions.words(text), [captions.words(t) for t in some]) for text, some in CAPTIONS]
    stacked = {name: np.array([one[name] for one in sums]) for name in sums[0]}
    assert captions.bleu(stacked).tolist() == [captions.bleu(one) for one in sums]
    assert captions.bleu(total([captions.bleu_counts([], [["a"]])])) == 0
    assert math.isnan(captions.bleu(dict.fromkeys(sums[0], 0.0)))


def test_words_of_captions() -> None:
    assert captions.words("It's a well-known DOG, isn't it?") == ["it's", "a", "well", "known", "dog", "isn't", "it"]
    assert captions.words(None) == []


def slow_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        new = [i]
        for j, b in enumerate(second, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (a != b)))
        row = new
    return row[-1]


def test_distance_is_levenshteins() -> None:
    draw = random.Random(0)
    for _ in range(500):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(2))
        assert edits.distance(a, b) == slow_distance(a, b), (a, b)
    assert edits.distance(["two", "words"], ["too", "words"]) == 1


@pytest.mark.parametrize(
    ("answer", "references", "value"),
    [
        ("Hello  World", ["hello world"], 1.0),
        ("hallo", ["hello"], 0.8),
        ("abcd", ["abxy"], 0.0),  # half of it is wrong: at the threshold
        ("abcde", ["abcxy"], 0.6),
        ("x", ["y", "xz", "x"], 1.0),
        ("", [""], 1.0),
        (None, ["a"], 0.0),
    ],
)
def test_anls(answer: str | None, references: list[str], value: float) -> None:
    assert edits.anls(answer, references) == pytest.approx(value)


def test_errors_add_up() -> None:
    # As jiwer counts them, which strips white space as well.
    pairs = [("the cat sat", "the cat sit"), ("on mats", "on  mat")]
    sums = total(edits.errors(said, true) for said, true in pairs)
    assert sums == {"char_errors": 2, "chars": 17, "word_errors": 2, "words": 5}
    assert edits.errors("", "two words") == {"char_errors": 9, "chars": 9, "word_errors": 2, "words": 2}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Cat.", "cat"),
        ("two dogs", "2 dogs"),
        ("don't know", "dont know"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("left/right", "left right"),
        ("yes!", "yes"),
        ("None", "0"),
        (None, ""),
    ],
)
def test_answers_as_the_vqa_evaluation_compares_them(text: str | None, plain: str) -> None:
    assert vqa.normalized(text) == plain


def test_vqa_accuracy() -> None:
    people = ["red"] * 3 + ["dark red"] * 5 + ["maroon", "brown"]
    # Three of ten say it: two others agree for those, three for the rest.
    assert vqa.vqa_accuracy("Red", people) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa.vqa_accuracy("dark red.", people) == 1
    assert vqa.vqa_accuracy("brown", people) == pytest.approx((0 + 9 / 3) / 10)
    assert vqa.vqa_accuracy("the red", ["Red"]) == 1 and vqa.vqa_accuracy("blue", ["Red"]) == 0


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("104.9", "100", True),
        ("105.1", "100", False),
        ("52%", "0.5", True),
        ("Yes", "yes", True),
        ("about 5", "5", False),
        ("0", "0", True),
        ("0.01", "0", False),
        (None, "5", False),
    ],
)
def test_relaxed(answer: str | None, truth: str, right: bool) -> None:
    assert vqa.relaxed(answer, truth) is right


def test_word_f1() -> None:
    assert vqa.word_f1("The red car.", "red") == pytest.approx(2 / 3)
    assert vqa.word_f1("red red", "red") == pytest.approx(2 / 3)
    assert vqa.word_f1("", "the") == 1 and vqa.word_f1(None, "red") == 0


def test_fields() -> None:
    truth = {"serial": "VK 7", "owner": {"name": "A", "phones": ["1", "2"]}, "year": 1999, "none": None, "empty": []}
    answer = 'Sure: ```{"serial": " VK  7 ", "owner": {"name": "a", "phones": ["1"]}, "year": "1999", "more": 1}```'
    counts, read = fields.compared(answer, truth)
    assert read == {
        "serial": "VK 7", "owner.name": "a", "owner.phones.0": "1", "owner.phones.1": None, "year": "1999",
        "none": None, "empty": None,
    }  # fmt: skip
    assert counts == {"fields": 7, "fields_right": 3, "fields_extra": 1, "json_asked": 1, "json_read": 1}
    counts, read = fields.compared("no braces here", {"a": 1})
    assert counts["json_read"] == 0 and counts["fields_right"] == 0 and read == {"a": None}
