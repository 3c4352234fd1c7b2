"""The local model: first-token probabilities, ranked answers, batches, memory, and what cannot be asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_items import FAMILIES, encoded, local, questions, ranked, said, shares
from PIL import Image

from vlmdata.errors import ConfigError
from vlmeval.models import computing
from vlmeval.models.batching import ahead, batches
from vlmeval.models.first_token import spellings
from vlmeval.models.local import Local
from vlmeval.models.preparing import Prepared
from vlmeval.models.questions import turns_of
from vlmeval.task import Item, Response
from vlmtrain.questions import Questions, pixels_once

sys.path.insert(0, str(Path(__file__).parents[1] / "vlmtrain"))

import colour_rows as rows  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_in_every_way(name: str, model_folder: Callable[[str], Path], pictures: Path) -> None:
    """Words and probabilities, one forward or several, alone or in a batch, and whole answers fast or plain."""
    items, choices = questions(5), ranked(4)
    models = {how: local(model_folder(name), pictures, answers=how) for how in ("generate", "logits", "both")}
    found = {how: said(model, [*items, *choices]) for how, model in models.items()}
    assert all(response.error is None for own in found.values() for response in own.values())
    alone = said(local(model_folder(name), pictures, answers="logits", batch_size=1), [*items, *choices])
    for item in items:
        words, logits, both = (found[how][item.id] for how in ("generate", "logits", "both"))
        assert words.text == both.text and not words.detail
        assert shares(logits) == pytest.approx(shares(both), abs=1e-6)
        assert shares(logits) == pytest.approx(shares(alone[item.id]), abs=1e-6)
        assert 0 < sum(shares(logits)) < 1 and logits.text == ("Yes", "No")[shares(logits)[0] < shares(logits)[1]]
    for item in choices:
        sums = found["generate"][item.id].detail["log_likelihoods"]
        assert sums == pytest.approx(alone[item.id].detail["log_likelihoods"], abs=1e-3)
        assert found["generate"][item.id].text == str(sums.index(max(sums)))
    loaded = models["generate"].loaded
    encoder = Questions(loaded)

    def read() -> list[dict[str, Any]]:
        opened = [[models["generate"].pictures.open(file) for file in item.images] for item in choices]
        return encoder.rows([turns_of(item) for item in choices], opened, [item.choices for item in choices])

    fast = computing.rank(loaded, read(), pixels_once)
    plain = computing.rank(loaded, read(), pixels_once, plain=True)
    for (sums, tokens), (others, lengths) in zip(fast, plain, strict=True):
        assert sums == pytest.approx(others, abs=1e-3) and tokens == lengths == found["both"]["r0"].detail["tokens"]


def test_probabilities_are_those_of_a_plain_forward(base: Path, pictures: Path) -> None:
    items = questions(3)
    model = local(base, pictures, answers="both")
    found = said(model, items)
    words = model._words[("Yes", "No")]
    for item in items:
        inputs = encoded(model, item)
        with torch.no_grad():
            chances = model.loaded.model(**inputs).logits[0, -1].double().softmax(-1)
        assert shares(found[item.id]) == pytest.approx([float(chances[own].sum()) for own in words], abs=1e-6)


def test_both_takes_one_forward_a_token(base: Path, pictures: Path) -> None:
    calls: dict[str, int] = {}
    for how in ("generate", "logits", "both"):
        model = local(base, pictures, answers=how, batch_size=8)
        model.load()
        calls[how] = 0

        def count(*args: Any, how: str = how) -> None:
            calls[how] += 1

        model.loaded.model.register_forward_hook(count)
        said(model, questions(3))
    assert calls["logits"] == 1 and calls["both"] == calls["generate"] > 1


def test_the_models_penalties_do_not_touch_probabilities(base: Path, pictures: Path) -> None:
    plain, bent = (local(base, pictures, answers="both") for _ in range(2))
    bent.load()
    bent.loaded.model.generation_config.repetition_penalty = 5.0
    ours, theirs = said(plain, questions(3)), said(bent, questions(3))
    assert [shares(ours[place]) for place in range(3)] == [shares(theirs[place]) for place in range(3)]
    assert bent.describe()["generation_config"]["repetition_penalty"] == 5.0


def test_ranked_sums_are_the_log_probabilities_of_dpo(base: Path, tmp_path: Path) -> None:
    from tuned import begun

    from vlmtrain.collate import PreferenceCollator
    from vlmtrain.dpo import make_trainer

    data = rows.write(tmp_path / "pairs", rows.pairs(4))
    job = begun("dpo", data, tmp_path / "run", model=str(base), max_steps=1, batch_size=4)
    trainer = make_trainer(job)
    batch = PreferenceCollator(job.loaded.processor, job.loaded.family)(rows.pairs(4))
    theirs = zip(*(column.tolist() for column in trainer.reference_columns(batch)), strict=True)
    items = [
        Item(
            row["id"],
            "",
            tuple(row["image_sha256"]),
            0,
            ("g",),
            "choice",
            tuple(row["prompt"]),
            (row["chosen"][0]["content"][0]["text"], row["rejected"][0]["content"][0]["text"]),
        )
        for row in rows.pairs(4)
    ]
    ours = said(local(base, data), items)
    for item, logps in zip(items, theirs, strict=True):
        assert ours[item.id].detail["log_likelihoods"] == pytest.approx(list(logps), abs=1e-3)


def byte_level() -> Any:
    from tiny_models.parts import tokenizer

    return tokenizer()


def sentencepiece() -> Any:
    """Metaspace in front of words, as Llama's tokenizers have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    texts = ["Yes No yes no YES NO Yes, Nothing\nYes\nNo North Norway"] * 9
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_words_have_all_their_spellings(make: Callable[[], Any]) -> None:
    tokenizer = make()
    begun = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]
    found = spellings(tokenizer, ("Yes", "No"), begun)
    assert not set(found[0]) & set(found[1])
    for own, first, word in zip(found, begun, ("yes", "no"), strict=True):
        texts = [tokenizer.decode([token]).strip() for token in own]
        assert first in own and all(word.startswith(text.lower()) for text in texts)
    if make is sentencepiece:
        assert {"▁Yes", "▁yes", "▁YES"} <= set(tokenizer.convert_ids_to_tokens(found[0]))


def test_words_that_begin_alike_are_refused(base: Path, pictures: Path) -> None:
    item = replace(questions(1)[0], choices=("North", "Norway"))
    with pytest.raises(ConfigError, match="cannot tell 'North' from 'Norway': with this tokenizer both begin with the"):
        said(local(base, pictures, answers="logits"), [item])
    assert said(local(base, pictures), [item])[0].error is None
    tokenizer = sentencepiece()
    # A token that could begin either belongs to the word it is trained for, one of neither to nobody.
    yes, no = (tokenizer.convert_tokens_to_ids(token) for token in ("▁Yes", "▁No"))
    assert spellings(tokenizer, ("a", "A"), [yes, no])[0] != spellings(tokenizer, ("A", "a"), [yes, no])[0]


def test_no_answer_depends_on_working_ahead_or_on_what_is_done(base: Path, pictures: Path) -> None:
    items = [*questions(9), *ranked(5)]
    model, plain = local(base, pictures, answers="both"), local(base, pictures, answers="both")
    plain.loads_ahead = 0
    whole = said(model, items)
    assert whole == said(plain, items)
    rest = said(model, items, [item.id for item in items if isinstance(item.id, int) and item.id % 2])
    assert len(rest) == 10
    for key, response in rest.items():
        assert response.text == whole[key].text


def test_batches_are_of_one_length_and_kind(base: Path, pictures: Path) -> None:
    items = [
        Item(place, "word " * (1 + place % 7), (f"{place % 3}.png",) * (1 + place % 2), "", ("g",), "text")
        for place in range(64)
    ]
    model = local(base, pictures, share_prefix=False)
    model.load()
    cut = model.batches([*items, *ranked(3), *questions(3)])
    assert sorted(len(batch) for batch in cut)[0] == 3 and sum(map(len, cut)) == 70
    assert all(len({(item.kind, item.choices) for item in batch}) == 1 for batch in cut)
    lengths = [model._length(item) for batch in cut for item in batch if item.kind == "text"]
    assert lengths == sorted(lengths), "within a window true lengths decide"
    assert model._length(items[1]) - model._length(items[8]) > 1, "images count: 2 of them and 2 words, 1 and 2 words"


def test_true_lengths_are_those_of_the_batch(base: Path, pictures: Path) -> None:
    model = local(base, pictures, prompt_suffix="Answer.")
    model.load()
    for item in [*questions(4), replace(questions(1)[0], images=())]:
        prepared = model._reader(model.loaded).prepare([item])
        assert model._length(item) == prepared.inputs["input_ids"].shape[1]


def test_what_cannot_be_shown_is_a_failed_answer(base: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    noise.save(folder / "cut.png")
    raw = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(raw[: len(raw) // 2])
    good = questions(3)
    odd = [
        replace(good[0], id="cut", images=("cut.png",)),
        replace(good[0], id="gone", images=("gone.png",)),
        replace(good[0], id="mark", prompt="What is <image> here?"),
        replace(good[0], id="turns", turns=({"role": "user", "content": [{"type": "text", "text": "a"}]},)),
        replace(ranked(1)[0], id="blank", choices=("yes", " ")),
        replace(ranked(1)[0], id="none", choices=()),
    ]
    found = said(local(base, folder), [*good, *odd])
    assert {key for key, response in found.items() if response.error} == {item.id for item in odd}
    assert all(found[item.id].text is None for item in odd)
    for key, words in {
        "cut": "cannot be decoded",
        "gone": "cannot be read",
        "mark": "this model's image token",
        "turns": "0 image parts and 1 images",
        "blank": "one of the answers is blank",
        "none": "no answers to choose from",
    }.items():
        assert words in found[key].error and "\n" not in found[key].error
    assert {key: found[key] for key in range(3)} == said(local(base, pictures), good)


def test_one_that_cannot_be_encoded_does_not_take_its_batch_along(
    base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Questions.prompts

    def fussy(self: Questions, conversations: Any, images: Any) -> Any:
        if any("poison" in str(turns) for turns in conversations):
            raise ValueError("mean must have 1 elements\nif it is an iterable")
        return plain(self, conversations, images)

    monkeypatch.setattr(Questions, "prompts", fussy)
    items = questions(4)
    model = local(base, pictures, share_prefix=False)
    found = said(model, [*items, replace(items[1], id="bad", prompt=items[1].prompt + "poison")])
    assert found["bad"].error == "mean must have 1 elements if it is an iterable"
    assert all(found[item.id].text is not None for item in items)


class Small:
    """Stands before a model's computing and has memory for so many rows."""

    def __init__(self, model: Local, rows: int) -> None:
        self.rows, self.plain, self.sizes = rows, model._compute, []

    def __call__(self, prepared: Prepared) -> list[Response]:
        self.sizes.append(len(prepared.items))
        if len(prepared.items) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.plain(prepared)


def test_batches_are_halved_until_they_fit(
    base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    items = questions(20)
    whole = said(local(base, pictures, batch_size=8), items)
    model = local(base, pictures, batch_size=8)
    small = Small(model, 3)
    monkeypatch.setattr(model, "_compute", small)
    assert said(model, items) == whole
    assert small.sizes[:2] == [8, 4] and max(small.sizes[2:]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "vlmeval: out of memory with 8 prompts: on with 4",
        "vlmeval: out of memory with 4 prompts: on with 2",
    ]
    assert model.environment()["batch_size_fits"] == 2


def test_a_model_without_memory_for_one_prompt_stops(
    base: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = local(base, pictures, batch_size=2)
    monkeypatch.setattr(model, "_compute", Small(model, 0))
    with pytest.raises(ConfigError, match="out of memory with a single prompt, item 0: lower --max-image-tokens"):
        said(model, questions(3))
    model = local(base, pictures, batch_size=1)
    plain = model._compute

    def picky(prepared: Prepared) -> list[Response]:
        if prepared.items[0].id == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return plain(prepared)

    monkeypatch.setattr(model, "_compute", picky)
    found = said(model, questions(3))
    assert "out of memory with this prompt alone" in found[1].error and found[0].text is not None


def test_work_ahead_keeps_order_and_passes_errors_on() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number * number

    def jobs() -> Any:
        for number in range(9):
            begun.append(number)
            yield number

    for depth in (0, 1, 3):
        begun.clear()
        results = ahead(work, jobs(), depth)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert len(begun) <= 5 + depth
        with pytest.raises(ValueError, match="five"):
            next(results)


def test_any_items_are_cut_once_each() -> None:
    items = [Item(place, "q" * (place % 5), (f"{place % 3}.png",), 0, ("g",)) for place in range(41)]
    cut = list(batches(items, 4))
    assert sorted(item.id for batch in cut for item in batch) == list(range(41))
    assert max(map(len, cut)) == 4
