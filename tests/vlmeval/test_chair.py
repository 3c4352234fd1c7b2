from __future__ import annotations

import json
from pathlib import Path

import amber_world
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmeval import amberset
from vlmeval.metrics import chair
from vlmeval.metrics.sums import total

NAMES = ("hallucinated", "nouns", "covered", "truth_slots", "cognition", "hallu_slots", "clean", "captions")
STARTS = dict.fromkeys(("chair", "safe_cover", "hallu_cover", "non_hallu"), 0.001)


def prefix4(one: str, other: str) -> bool:
    return one == other or (min(len(one), len(other)) >= 4 and one[:4] == other[:4])


SYNONYMS = {"": chair.exact, "_prefix4": prefix4}


@pytest.mark.parametrize("synonyms", SYNONYMS)
@pytest.mark.parametrize("name", ["g_mixed", "g_truth_words"])
def test_every_caption_of_real_files(real: Path, name: str, synonyms: str) -> None:
    amber, folder = amberset.read(real), real / "golden" / name
    lexicon = chair.Lexicon(amber.association, amber.safe, SYNONYMS[synonyms])
    recorded = json.loads((folder / f"official{synonyms}.per_item.json").read_text())
    counters = [name.strip() for name in "chair_score chair_num safe_cover_score safe_cover_num".split()]
    counters += "hallu_cover_score hallu_cover_num non_hallu_score non_hallu_num".split()
    sums = []
    for row in recorded:
        note = amber.annotations[row["id"]]
        assert isinstance(note.truth, tuple)
        counts, _ = chair.captioned(row["vocab_nouns"], note.truth, note.hallu, lexicon)
        assert [counts[name] for name in NAMES] == [row[name] for name in counters], row["id"]
        sums.append(counts)
    assert len(recorded) == 1004
    printed = json.loads((folder / f"official{synonyms}.json").read_text())["printed"]["Generative Task"]
    ours = chair.official(total(sums), STARTS)
    assert ours == {name.lower(): value for name, value in printed.items()}


WORDS = sorted({*amber_world.ASSOCIATION, *(w for others in amber_world.ASSOCIATION.values() for w in others)})
KEYS = sorted(amber_world.ASSOCIATION)


def first_letter(one: str, other: str) -> bool:
    return one[0] == other[0]


@given(
    nouns=st.lists(st.sampled_from([*WORDS, "zebra", "Cat"]), max_size=12),
    truth=st.lists(st.sampled_from(KEYS), max_size=5),
    hallu=st.lists(st.sampled_from(KEYS), max_size=5),
    same=st.sampled_from([chair.exact, prefix4, first_letter]),
)
def test_any_caption_counts_as_the_description_says(nouns, truth, hallu, same) -> None:
    association = {word: tuple(others) for word, others in amber_world.ASSOCIATION.items()}
    lexicon = chair.Lexicon(association, frozenset(amber_world.SAFE), same)
    counts, detail = chair.captioned(nouns, truth, hallu, lexicon)
    note = {"truth": truth, "hallu": hallu}
    expected = amber_world.official_caption(nouns, note, amber_world.ASSOCIATION, amber_world.SAFE, same)
    assert tuple(counts[name] for name in NAMES) == expected
    assert len(detail["hallucinated"]) == counts["hallucinated"]
    assert len(detail["missed"]) == counts["truth_slots"] - counts["covered"]


def test_known_quirks() -> None:
    lexicon = chair.Lexicon({"person": ("child",), "child": (), "light": ()}, frozenset(["light"]))
    # The associated word of the first slot takes the match: the second slot gets no credit.
    assert chair.captioned(["child"], ["person", "child"], [], lexicon)[0]["covered"] == 1
    counts, detail = chair.captioned(["child", "person"], ["person", "child"], [], lexicon)
    assert counts["covered"] == 1 and detail["missed"] == ["child"]
    # A safe word is never wrong and never covers, but it is counted.
    counts, _ = chair.captioned(["light"], ["light"], ["light"], lexicon)
    assert (counts["nouns"], counts["hallucinated"], counts["covered"], counts["cognition"]) == (1, 0, 0, 0)


def test_one_clean_caption_prints_a_tenth_of_hal() -> None:
    lexicon = chair.Lexicon({"cat": ()}, frozenset())
    counts, _ = chair.captioned(["cat"], ["cat"], ["cat"], lexicon)
    assert chair.official(counts, STARTS) == {"chair": 0.0, "cover": 99.9, "hal": 0.1, "cog": 0.0}
