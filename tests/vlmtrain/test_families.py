"""One set of checks over every discovered family, each on a tiny random model of its architecture."""

from __future__ import annotations

import copy
import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
from PIL import Image

from vlmdata.errors import ConfigError, DataError
from vlmtrain import family as families
from vlmtrain.collate import IGNORED, Collator, PreferenceCollator, prompt_batch
from vlmtrain.data import open_data
from vlmtrain.encode import encode
from vlmtrain.lengths import Fit, fit
from vlmtrain.model import Loaded, load, set_budget
from vlmtrain.trl_seam import image_tokens

ROWS = [
    rows.sample(
        "two",
        [
            rows.user(rows.PLACE, "What colour?"),
            rows.assistant("It is red."),
            rows.user("And ", rows.PLACE, " this?"),
            rows.assistant("blue\nor so"),
        ],
        [rows.picture("red"), rows.picture("blue", (90, 31))],
    ),
    rows.sample("none", [rows.user("Say yes."), rows.assistant("Yes.")], []),
    rows.sample("bare", [rows.user(rows.PLACE), rows.assistant("A green square")], [rows.picture("green", (20, 60))]),
]
ATTENTION = re.compile(r"attn|attention|image_pooling")
# Of Molmo 2: an embedding of patches, which is a convolution in other towers and nobody's either.
OTHER = ("model.vision_tower.patch_embedding",)
ANSWERS = [["It is red.", "blue\nor so"], ["Yes."], ["A green square"]]


def suited(family: families.Family) -> list[dict[str, Any]]:
    """These rows, with no more images than the architecture takes."""
    if family.max_images is None or family.max_images > 1:
        return ROWS
    ask, answer, _, last = ROWS[0]["messages"]
    return [rows.sample("two", [ask, answer, rows.user("And this?"), last], [rows.picture("red")]), *ROWS[1:]]


@pytest.fixture(scope="module")
def bare(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The same architecture published without a chat template."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    return load(str(tiny_models.make(loaded.family.name, folder, chat_template=False)), device="cpu")


def label_spans(loaded: Loaded, batch: dict[str, Any], row: int) -> list[str]:
    """The supervised runs of a row, decoded."""
    labels = batch["labels"][row].tolist()
    runs = [list(run) for on, run in itertools.groupby(labels, lambda label: label != IGNORED) if on]
    return [loaded.processor.tokenizer.decode(run) for run in runs]


def ends(loaded: Loaded) -> list[str]:
    stops = loaded.model.generation_config.eos_token_id
    return loaded.processor.tokenizer.convert_ids_to_tokens(stops if isinstance(stops, list) else [stops])


def pictures(row: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]


@pytest.mark.parametrize("template", ["own", "family"])
def test_labels_are_the_answers_with_their_end_token(loaded: Loaded, bare: Loaded, template: str) -> None:
    used = loaded if template == "own" else bare
    batch = Collator(used.processor, used.family)(suited(used.family))
    for row, answers in enumerate(ANSWERS):
        spans = label_spans(used, batch, row)
        assert len(spans) == len(answers)
        for span, answer in zip(spans, answers, strict=True):
            assert re.fullmatch(rf"\s?{re.escape(answer)}({'|'.join(map(re.escape, ends(used)))})", span), span
    assert batch["input_ids"][1, -1] == used.processor.tokenizer.pad_token_id, "padded on the right"
    assert not batch["labels"][batch["attention_mask"] == 0].ne(IGNORED).any()


def test_rows_of_a_batch_are_the_same_alone(loaded: Loaded) -> None:
    collate = Collator(loaded.processor, loaded.family)
    made = suited(loaded.family)
    together = collate(made)
    with torch.no_grad():
        logits = loaded.model(**{k: v for k, v in together.items() if k != "labels"}).logits
        for number, row in enumerate(made):
            alone = collate([row])
            width = alone["input_ids"].shape[1]
            assert torch.equal(alone["input_ids"][0], together["input_ids"][number, :width])
            assert torch.equal(alone["labels"][0], together["labels"][number, :width])
            single = loaded.model(**{k: v for k, v in alone.items() if k != "labels"}).logits[0]
            torch.testing.assert_close(single, logits[number, :width], rtol=1e-4, atol=1e-4)


def test_rows_with_no_one_and_three_images(loaded: Loaded) -> None:
    """Mixed in one batch, and words alone."""
    most = min(3, loaded.family.max_images or 3)
    shown = [rows.picture("red", (60, 40)), rows.picture("blue", (90, 31)), rows.picture("green", (20, 60))]
    made = [
        rows.sample(f"{n}", [rows.user(*[rows.PLACE] * n, "Say."), rows.assistant("Yes.")], shown[:n])
        for n in (0, 1, most, 0)
    ]
    collate = Collator(loaded.processor, loaded.family)
    with torch.no_grad():
        inputs = {k: v for k, v in collate(made).items() if k != "labels"}
        logits = loaded.model(**inputs).logits
        for number, row in enumerate(made):
            single = loaded.model(**{k: v for k, v in collate([row]).items() if k != "labels"}).logits[0]
            torch.testing.assert_close(single, logits[number, : len(single)], rtol=1e-4, atol=1e-4)
        words = collate([made[0], made[3]])
        pixels = {"pixel_values", *loaded.family.feature_inputs, *loaded.family.pixel_inputs} & words.keys()
        assert not any(words[key].any() for key in pixels)
        assert loaded.model(**words).loss.isfinite()
    if loaded.family.max_images is not None:
        ask, many = rows.user(*[rows.PLACE] * (most + 1)), [Image.new("RGB", (30, 30))] * (most + 1)
        with pytest.raises(ConfigError, match=f"{most + 1} images; this family takes at most {most}"):
            prompt_batch(loaded.processor, loaded.family, [[ask]], [many])


def drawn(mode: str, size: tuple[int, int], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(stream, kind)
    return stream.getvalue()


def fitted(loaded: Loaded, folder: Path, pictures: list[Any], limit: int | None) -> Fit:
    """A row for every picture, and one of words for None."""
    ask, words = ([rows.user(*shown, "What?"), rows.assistant("A ring.")] for shown in ([rows.PLACE], []))
    made = [rows.sample(f"{n}", ask if p else words, [p] if p else []) for n, p in enumerate(pictures)]
    data = open_data([rows.write(folder, made)], "messages")
    return fit(data.rows, "messages", loaded.processor, loaded.family, max_length=limit, on_long="shrink")


def test_pictures_of_all_kinds(loaded: Loaded, tmp_path: Path) -> None:
    """Their tokens are known before they are opened; a shape the processor refuses is a dropped row."""
    odd = [
        drawn(*kind)
        for kind in (("L", (40, 40)), ("RGBA", (31, 57)), ("P", (64, 64), "GIF"), ("CMYK", (50, 20), "JPEG"))
    ]
    usual = ((40, 40), (90, 31), (20, 60), (200, 150), (28, 28), (57, 400), (640, 480), (333, 97))
    odd += [drawn("RGB", size) for size in (*usual, (8, 8), (1, 1), (400, 3), (3, 400), (1, 400))]
    found = fitted(loaded, tmp_path / "odd", odd, None)
    assert {why for _, why, _ in found.dropped} <= {"image_shape"} and len(found.rows) >= len(odd) - 3
    collate = Collator(loaded.processor, loaded.family)
    for name, _, _ in found.dropped:
        with pytest.raises((RuntimeError, ValueError, ZeroDivisionError)):
            collate([{**ROWS[2], "images": [{"bytes": odd[int(name)], "path": None}]}])
    for row in found.rows:
        assert row["length"] == collate([row])["input_ids"].shape[1], row["id"]
    with torch.no_grad():
        assert loaded.model(**collate(list(found.rows))).loss.isfinite()


def test_rows_that_are_too_long(loaded: Loaded, tmp_path: Path) -> None:
    """Images are made smaller where that helps; what comes out fits."""
    large = [*(drawn("RGB", size) for size in ((300, 300), (40, 40), (500, 120))), None]
    whole = fitted(loaded, tmp_path / "whole", large, None)
    limit = max(whole.rows["length"]) - 1
    found = fitted(loaded, tmp_path / "cut", large, limit)
    assert len(found.rows) + len(found.dropped) == 4
    assert found.shrunk + len(found.dropped) >= 1 and {why for _, why, _ in found.dropped} <= {"too_long"}
    collate = Collator(loaded.processor, loaded.family)
    for row in found.rows:
        assert row["length"] == collate([row])["input_ids"].shape[1] <= limit


def test_no_answer_leaks_into_its_prompt(loaded: Loaded) -> None:
    batch = Collator(loaded.processor, loaded.family)(ROWS[2:])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    last = int((batch["labels"][0] != IGNORED).nonzero().max())
    changed["input_ids"][0, last] = loaded.processor.tokenizer.convert_tokens_to_ids("a")
    with torch.no_grad():
        before, after = loaded.model(**inputs).logits[0], loaded.model(**changed).logits[0]
    assert torch.equal(before[:last], after[:last])
    assert not torch.equal(before[last], after[last])


def test_the_model_sees(loaded: Loaded) -> None:
    collate = Collator(loaded.processor, loaded.family)
    logits = []
    for colour in ("red", "blue"):
        row = {**ROWS[2], "images": [{"bytes": rows.picture(colour), "path": None}]}
        with torch.no_grad():
            logits.append(loaded.model(**{k: v for k, v in collate([row]).items() if k != "labels"}).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_batched_generation_equals_single(loaded: Loaded) -> None:
    made = suited(loaded.family)
    prompts = [row["messages"][:1] for row in made]
    counts = [sum(part["type"] == "image" for part in ask[0]["content"]) for ask in prompts]
    shown = [pictures(row)[:count] for row, count in zip(made, counts, strict=True)]
    batch = prompt_batch(loaded.processor, loaded.family, prompts, shown)
    assert (batch["attention_mask"][:, -1] == 1).all(), "padded on the left"
    width = batch["input_ids"].shape[1]
    together = loaded.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, width:]
    for number, (ask, images) in enumerate(zip(prompts, shown, strict=True)):
        alone = prompt_batch(loaded.processor, loaded.family, [ask], [images])
        single = loaded.model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(single, together[number, : len(single)])


@pytest.mark.parametrize("template", ["own", "family"])
def test_a_prompt_is_the_beginning_of_its_training_row(loaded: Loaded, bare: Loaded, template: str) -> None:
    used = loaded if template == "own" else bare
    for row in suited(used.family):
        ask = prompt_batch(used.processor, used.family, [row["messages"][:-1]], [pictures(row)])["input_ids"][0]
        whole = Collator(used.processor, used.family)([row])["input_ids"][0]
        assert torch.equal(ask, whole[: len(ask)])


def test_prompts_that_cannot_be_are_refused(loaded: Loaded) -> None:
    ask, image = [rows.user(rows.PLACE, "What?")], Image.new("RGB", (30, 30))
    with pytest.raises(DataError, match="1 image parts and 0 images"):
        prompt_batch(loaded.processor, loaded.family, [ask], [[]])
    words = [rows.user(f"What is {loaded.processor.image_token}?")]
    with pytest.raises(DataError, match="image token"):
        prompt_batch(loaded.processor, loaded.family, [ask, words], [[image], []])


def test_image_tokens_are_known_from_the_size(loaded: Loaded) -> None:
    text = f"{loaded.processor.tokenizer.bos_token}a{loaded.processor.image_token} b"
    empty = len(loaded.processor.tokenizer(text)["input_ids"]) - 1
    for size in [(40, 40), (90, 31), (20, 60), (200, 150), (28, 28), (57, 400), (2, 2)]:
        found = encode(loaded.processor, loaded.family, [text], [[Image.new("RGB", size)]], side="right")
        assert image_tokens(loaded.processor, [size], loaded.family) == [len(found["input_ids"][0]) - empty], size


def test_image_budget(loaded: Loaded, model_folder: Callable[[str], Path]) -> None:
    large, family = (300, 200), loaded.family
    full = image_tokens(loaded.processor, [large], family)[0]
    taken: dict[int, int] = {}
    for budget in range(1, full + 1):
        processor = copy.deepcopy(loaded.processor)
        try:
            set_budget(processor, family, budget)
        except ConfigError as error:
            assert re.search(rf"takes (at least )?\d+ tokens here; --max-image-tokens {budget} is less", str(error))
            assert not taken, "a smaller budget was accepted"
            continue
        taken[budget] = image_tokens(processor, [large], family)[0]
    assert all(tokens <= budget for budget, tokens in taken.items())
    assert taken[full] > full / 2
    assert len(taken) == 1 if family.set_budget is None else min(taken.values()) < full / 2
    small = load(str(model_folder(family.name)), max_image_tokens=min(taken), device="cpu")
    pictures = [Image.new("RGB", size) for size in (large, (30, 90))]
    for image in pictures:
        assert image_tokens(small.processor, [image.size], family)[0] <= min(taken)
    batch = prompt_batch(small.processor, family, [[rows.user(rows.PLACE)]] * 2, [[image] for image in pictures])
    with torch.no_grad():
        small.model(**batch)


def test_preference_batch_is_both_rows(loaded: Loaded) -> None:
    """One image pass and one batch give what two full passes give."""
    ask = [rows.user(rows.PLACE, "Colour?"), rows.assistant("Of what?"), rows.user(rows.PLACE, "Both.")]
    shown = [rows.picture("red"), rows.picture("blue", (70, 30))]
    if loaded.family.max_images == 1:
        ask, shown = [*ask[:2], rows.user("Both.")], shown[:1]
    pair = rows.preference("p", ask, "Red and blue.", "No", shown)
    text = rows.preference("t", [rows.user("Say yes.")], "Yes.", "It is a circle, a red one.", [])
    batch = PreferenceCollator(loaded.processor, loaded.family)([pair, text])
    single = Collator(loaded.processor, loaded.family)
    for half, side in enumerate(("chosen", "rejected")):
        plain = single([{**row, "messages": [*row["prompt"], *row[side]]} for row in (pair, text)])
        width = plain["input_ids"].shape[1]
        here = slice(2 * half, 2 * half + 2)
        for key in {"input_ids", "attention_mask", "mm_token_type_ids"} & plain.keys():
            assert torch.equal(batch[key][here, :width], plain[key]), key
        assert not batch["attention_mask"][here, width:].any()
        for key in {"pixel_values", *loaded.family.feature_inputs}:
            assert torch.equal(batch[key], plain[key])
        for number, row in enumerate((pair, text)):
            completion = batch["input_ids"][here][number][batch["completion_mask"][here][number] == 1]
            said = loaded.processor.tokenizer.decode(completion)
            assert said == row[side][0]["content"][0]["text"] + ends(loaded)[0]


@pytest.mark.parametrize("part", families.PARTS)
def test_lora_goes_where_it_is_told(loaded: Loaded, part: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    if part not in loaded.family.targets:
        pytest.skip(f"no linear layer in the {part} of this architecture")
    for kind in loaded.family.targets[part]:
        net = copy.deepcopy(loaded.model)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=loaded.family.target_regex((part,), (kind,))), net)
        names = [name for name, value in net.named_parameters() if "lora_A" in name]
        assert names
        in_tower = [name.startswith(loaded.family.towers) for name in names]
        assert all(in_tower) if part != "language" else not any(in_tower)
        assert {bool(ATTENTION.search(name)) for name in names} == {kind == "attention"}


def test_the_three_parts_are_all_linear_layers_of_the_model(loaded: Loaded) -> None:
    """Only the head, what pools the tower's output for other tasks, and the embedding of patches is nobody's."""
    parts = tuple(part for part in families.PARTS if part in loaded.family.targets)
    regex = re.compile(loaded.family.target_regex(parts, families.KINDS))
    head = loaded.model.get_output_embeddings()
    linear = [n for n, m in loaded.model.named_modules() if type(m) is torch.nn.Linear and m is not head]
    assert not [name for name in linear if not regex.fullmatch(name) and name not in OTHER]


def test_unknown_parts_and_kinds(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match="no part named 'eyes' in this model; valid: language"):
        loaded.family.target_regex(("eyes",), ("mlp",))
    for part in families.PARTS:
        kinds = loaded.family.targets.get(part, {})
        for kind in set(families.KINDS) - set(kinds):
            fault = f"the {part} of this model has no {kind} layers; it has: " if kinds else f"no part named '{part}'"
            with pytest.raises(ConfigError, match=fault):
                loaded.family.target_regex((part,), (kind,))


def test_a_model_of_no_family_is_named() -> None:
    from transformers import BertConfig, Kosmos2Config

    with pytest.raises(ConfigError, match="m is not a vision-language model: its model_type is 'bert'.*llava"):
        families.for_model(BertConfig(), "m")
    with pytest.raises(ConfigError, match="m is a vision-language model of an unknown family.*'kosmos-2'.*llava"):
        families.for_model(Kosmos2Config(), "m")
