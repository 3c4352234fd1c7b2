"""Figures of texts, against values that reference implementations or papers give."""

from __future__ import annotations

import math
import random

import pytest

from vlmeval.metrics import caption_scores, edits, fields, letters, lookalikes, numbers, short_answers
from vlmeval.metrics.sums import total

# Captions with their references, and what pycocoevalcap 1.2 gives for them (split at blanks, no tokenizer).
CAPTIONS = (
    ("a red square on green grass", ("a red square on the grass", "there is a red square")),
    ("two men play football in a stadium", ("two men play football", "men in a stadium play a game of football")),
    ("the dog runs with a ball", ("a dog runs after the ball on the grass",)),
    ("cat", ("a cat sits", "the cat")),
)
COCO = {
    "bleu": (0.6667363985, 0.5271014046, 0.4293804019, 0.3290918116),
    "cider": (4.6200338642, 4.3834482913, 1.9535658246, 2.0431607177),
    "rouge_l": (0.8333333333, 0.7648902821, 0.3860759494, 0.6288659794),
}


def test_captions_score_as_in_coco_caption() -> None:
    said = [caption_scores.words(text) for text, _ in CAPTIONS]
    true = [[caption_scores.words(text) for text in texts] for _, texts in CAPTIONS]
    sums = total(caption_scores.bleu_counts(one, some) for one, some in zip(said, true, strict=True))
    for order, value in enumerate(COCO["bleu"], 1):
        assert caption_scores.bleu(sums, order) == pytest.approx(value, abs=1e-8)
    counted = caption_scores.Frequencies(true)
    pairs = list(zip(said, true, strict=True))
    assert [counted.cider(*pair) for pair in pairs] == pytest.approx(COCO["cider"], abs=1e-8)
    assert [caption_scores.rouge_l(*pair) for pair in pairs] == pytest.approx(COCO["rouge_l"], abs=1e-8)


def test_bleu_of_arrays_is_that_of_numbers() -> None:
    import numpy as np

    sums = [
        caption_scores.bleu_counts(caption_scores.words(text), [caption_scores.words(t) for t in some])
        for text, some in CAPTIONS
    ]
    stacked = {name: np.array([one[name] for one in sums]) for name in sums[0]}
    for order in range(1, 5):
        plain = [caption_scores.bleu(one, order) for one in sums]
        assert caption_scores.bleu(stacked, order).tolist() == pytest.approx(plain, abs=1e-12)
    assert caption_scores.bleu(total([caption_scores.bleu_counts([], [["a"]])])) == 0
    assert math.isnan(caption_scores.bleu(dict.fromkeys(sums[0], 0.0)))


def test_words_of_captions() -> None:
    assert caption_scores.words("It's a well-known DOG, isn't it?") == [
        "it's",
        "a",
        "well",
        "known",
        "dog",
        "isn't",
        "it",
    ]
    assert caption_scores.words(None) == []


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
    assert {name: sums.pop(name) for name in ("char_errors", "chars", "word_errors", "words")} == {
        "char_errors": 2, "chars": 17, "word_errors": 2, "words": 5,
    }  # fmt: skip
    assert sums == {"chars_replaced": 1, "chars_left_out": 0, "chars_added": 1}
    empty = edits.errors("", "two words")
    assert empty == {
        "char_errors": 9, "chars": 9, "word_errors": 2, "words": 2, "chars_replaced": 0, "chars_left_out": 9,
        "chars_added": 0,
    }  # fmt: skip
    assert edits.errors("ab c", "")["char_errors"] == 4 and edits.errors(None, "")["words"] == 0


def test_errors_are_the_distances_of_the_definition() -> None:
    draw = random.Random(1)
    for _ in range(300):
        said, true = ("".join(draw.choices("ab \n\té", k=draw.randrange(12))) for _ in range(2))
        found = edits.errors(said, true)
        plain = [" ".join(text.split()) for text in (said, true)]
        assert found["char_errors"] == slow_distance(*plain)
        assert found["word_errors"] == edits.distance(*(text.split() for text in plain))
        kinds = found["chars_replaced"] + found["chars_left_out"] + found["chars_added"]
        assert kinds == found["char_errors"]
        longer = max(map(len, plain))
        apart = slow_distance(*(text.lower() for text in plain)) / longer if longer else 0
        assert edits.anls(said, [true]) == pytest.approx(1 - apart if apart < 0.5 else 0, abs=1e-12)


def test_substitutions_are_those_along_the_edits() -> None:
    assert edits.substitutions("UK7X1", "VK7X1") == [("V", "U")]
    assert edits.substitutions("0K7X", "OK7X1") == [("O", "0")], "what is left out is no substitution"
    assert edits.substitutions("a5B", "aS8") == [("S", "5"), ("8", "B")]
    assert edits.substitutions("same", "same") == edits.substitutions("", "abc") == []


def test_characters_that_look_alike() -> None:
    for group in ("VU", "8S0", "RP"):
        assert all(lookalikes.alike(a, b) and lookalikes.alike(b, a) for a in group for b in group if a != b)
    assert not lookalikes.alike("O", "8") and not lookalikes.alike("A", "B")
    assert lookalikes.forgiven("UR8", "VP0") and lookalikes.forgiven("A", "A")
    assert not lookalikes.forgiven("VK", "VK7") and not lookalikes.forgiven("AK", "BK")


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
    assert short_answers.normalized(text) == plain


def test_vqa_accuracy() -> None:
    people = ["red"] * 3 + ["dark red"] * 5 + ["maroon", "brown"]
    # Three of ten say it: two others agree for those, three for the rest.
    assert short_answers.vqa_accuracy("Red", people) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert short_answers.vqa_accuracy("dark red.", people) == 1
    assert short_answers.vqa_accuracy("brown", people) == pytest.approx((0 + 9 / 3) / 10)
    assert short_answers.vqa_accuracy("the red", ["Red"]) == 1 and short_answers.vqa_accuracy("blue", ["Red"]) == 0


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
    assert short_answers.relaxed(answer, truth) is right


def test_word_f1() -> None:
    assert short_answers.word_f1("The red car.", "red") == pytest.approx(2 / 3)
    assert short_answers.word_f1("red red", "red") == pytest.approx(2 / 3)
    assert short_answers.word_f1("", "") == 1 and short_answers.word_f1(None, "red") == 0
    assert short_answers.word_f1("", "A") == short_answers.vqa_accuracy("", ["A"]) == 0, "an option, not an article"
    assert short_answers.vqa_accuracy("a", ["A"]) == 1
    assert short_answers.vqa_accuracy("", ["?"]) == 0 and short_answers.vqa_accuracy("?", ["?"]) == 1


def test_fields() -> None:
    truth = {"serial": "VK 7", "owner": {"name": "A", "phones": ["1", "2"]}, "year": 1999, "none": None, "empty": []}
    answer = 'Sure: ```{"serial": " VK  7 ", "owner": {"name": "a", "phones": ["1"]}, "year": "1999", "more": 1}```'
    counts, read, extra = fields.compared(answer, truth)
    assert read == {
        "serial": "VK 7", "owner.name": "a", "owner.phones.0": "1", "owner.phones.1": None, "year": "1999",
        "none": None, "empty": None,
    }  # fmt: skip
    assert extra == {"more": "1"}
    assert counts == {
        "fields": 7, "fields_said": 5, "fields_right": 3, "fields_extra": 1, "json_asked": 1, "json_read": 1,
        "json_only": 0,
    }  # fmt: skip
    counts, read, extra = fields.compared("no braces here", {"a": 1})
    assert counts["json_read"] == 0 and counts["fields_right"] == 0 and read == {"a": None} and not extra
    assert fields.compared(' {"a": 1}\n', {"a": 1})[0]["json_only"] == 1
    assert fields.compared('[{"a": 1}]', {"a": 1})[0]["json_only"] == 0
    assert fields.family("items.0.price") == fields.family("items.12.price") == "items.*.price"
    assert fields.family("2024") == "2024" and fields.json_object("[1]") is None


def test_an_answer_nested_deeper_than_calls_may_be_is_read_or_not_but_ends() -> None:
    deep = '{"a":' * 900 + "1" + "}" * 900
    counts, _, extra = fields.compared(deep, {"b": 1})
    assert counts["fields_right"] == 0 and len(extra) == counts["json_read"]
    assert fields.compared('{"a":' * 100_000, {"b": 1})[0]["json_read"] == 0


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("very very very good", False),
        ("no no no no no no", True),
        ("a dog a dog a dog", True),
        ("a dog a dog a cat", False),
        ("it shows a red ball a red ball a red ball", True),
        ("one two three four one two three four", False),
        ("", False),
    ],
)
def test_loops(text: str, looping: bool) -> None:
    assert caption_scores.loops(text.split()) is looping


def test_repetition() -> None:
    words = "a b c d a b c d".split()
    assert caption_scores.repetition_counts(words) == {"different4": 4, "loops": 0}
    assert caption_scores.bleu_counts(words, [words])["grams4"] == 5


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17.34", 17.34),
        ("Therefore the final answer is 17.34.", 17.34),
        ("The sides are 3 and 4, so the hypotenuse is 5.", 5),
        ("area = 3 * 4 = 12 square units", 12),
        ("perimeter = 2 * 6 + 3 = 15. Therefore the final answer is 15.", 15),
        ("BC = 5, AC = 6. The area is 30", 30),
        ("The answer is 12 cm, not 15.", 12),
        ("45^\\circ", 45),
        ("$45^{\\circ}$", 45),
        ("The angle is 45° wide", 45),
        ("1,234.5 m", 1234.5),
        ("3/4", 0.75),
        ("1 1/2", 1.5),
        ("1\\frac{1}{2}", 1.5),
        ("so $x = \\frac{-3}{2}$", -1.5),
        ("-5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("2\\sqrt{3}", 2 * math.sqrt(3)),
        ("\\boxed{\\frac{1+\\sqrt{5}}{2}} as 3 < 4", (1 + math.sqrt(5)) / 2),
        ("12\\pi", 12 * math.pi),
        ("12π cm²", 12 * math.pi),
        ("1.2 \\times 10^3", 1200),
        ("1.2e-3", 0.0012),
        ("Five apples", 5),
        ("x2", None),
        ("1/0", None),
        ("\\sqrt{-1}", None),
        ("9^9^9", None),
        ("the answer is unclear", None),
        ("", None),
        (None, None),
        ("(" * 30_000, None),
        ("\\frac{" * 5_000, None),
    ],
)
def test_the_number_a_sentence_comes_to(text: str | None, number: float | None) -> None:
    assert numbers.read_number(text) == (None if number is None else pytest.approx(number))


QUESTION = "What is it?\nChoices:\nA. a cat\nB. a dog\nC. a cat and a dog\nAnswer with the letter."


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. a dog", "B"),
        ("The correct answer is (B) a dog", "B"),
        ("The answer is B because it barks", "B"),
        ("answer: a", "A"),
        ("I would say C)", "C"),
        ("$\\boxed{C}$", "C"),
        ("It is a dog", "B"),
        ("A dog", "B"),
        ("a cat and a dog", "C"),
        ("A or B", None),
        ("B, not C", None),
        ("D", None),
        ("no idea", None),
        ("", None),
        (None, None),
    ],
)
def test_the_letter_an_answer_chooses(answer: str | None, letter: str | None) -> None:
    assert letters.chosen(answer, letters.options(QUESTION)) == letter


def test_options_of_a_question() -> None:
    assert letters.options(QUESTION) == {"A": "a cat", "B": "a dog", "C": "a cat and a dog"}
    assert letters.options("Which? (A) red (B) blue") == {"A": "red", "B": "blue"}
    assert letters.options("Pick: A) red, B) blue, C) green") == {"A": "red", "B": "blue", "C": "green"}
    assert letters.options("Is this plan B. or not?") == letters.options("A. only one") == {}


@pytest.mark.parametrize(
    ("answer", "truth", "tolerance", "right"),
    [
        ("The area is 12.4 cm", "Therefore the final answer is 12.", 0.05, True),
        ("The area is 12.7 cm", "Therefore the final answer is 12.", 0.05, False),
        ("12.1", "12", 0.0, False),
        ("12.0", "12", 0.0, True),
        ("0", "0 degrees", 0.05, True),
        ("50%", "0.5", 0.0, True),
        ("50%", "50", 0.0, True),
        ("no idea", "12", 0.05, False),
        ("a cat", "A cat", 0.05, True),
    ],
)
def test_relaxed_reads_numbers_in_sentences(answer: str, truth: str, tolerance: float, right: bool) -> None:
    assert short_answers.relaxed(answer, truth, tolerance, read=True) is right
