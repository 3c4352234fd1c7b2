"""One set of checks over every discovered family, each on a tiny random model of its architecture."""

from __future__ import annotations

import io
import itertools
import re
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
from vlmtrain.model import Loaded, load
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
ANSWERS = [["It is red.", "blue\nor so"], ["Yes."], ["A green square"]]


@pytest.fixture(scope="module", params=families.names())
def loaded(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Loaded:
    return load(str(bases[request.param]), device="cpu")


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
    batch = Collator(used.processor, used.family)(ROWS)
    for row, answers in enumerate(ANSWERS):
        spans = label_spans(used, batch, row)
        assert len(spans) == len(answers)
        for span, answer in zip(spans, answers, strict=True):
            assert re.fullmatch(rf"\s?{re.escape(answer)}({'|'.join(map(re.escape, ends(used)))})", span), span
    assert batch["input_ids"][1, -1] == used.processor.tokenizer.pad_token_id, "padded on the right"
    assert not batch["labels"][batch["attention_mask"] == 0].ne(IGNORED).any()


def test_rows_of_a_batch_are_the_same_alone(loaded: Loaded) -> None:
    collate = Collator(loaded.processor, loaded.family)
    together = collate(ROWS)
    with torch.no_grad():
        logits = loaded.model(**{k: v for k, v in together.items() if k != "labels"}).logits
        for number, row in enumerate(ROWS):
            alone = collate([row])
            width = alone["input_ids"].shape[1]
            assert torch.equal(alone["input_ids"][0], together["input_ids"][number, :width])
            assert torch.equal(alone["labels"][0], together["labels"][number, :width])
            single = loaded.model(**{k: v for k, v in alone.items() if k != "labels"}).logits[0]
            torch.testing.assert_close(single, logits[number, :width], rtol=1e-4, atol=1e-4)


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
    prompts = [row["messages"][:1] for row in ROWS]
    counts = [sum(part["type"] == "image" for part in ask[0]["content"]) for ask in prompts]
    shown = [pictures(row)[:count] for row, count in zip(ROWS, counts, strict=True)]
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
    for row in ROWS:
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
    token = loaded.processor.image_token
    empty = len(loaded.processor.tokenizer(f"a{token}b")["input_ids"]) - 1
    for size in [(40, 40), (90, 31), (20, 60), (200, 150), (28, 28), (57, 400), (1, 1)]:
        images = [Image.new("RGB", size)]
        found = loaded.processor(text=[f"a{token}b"], images=[images] if loaded.family.nested_images else images)
        assert image_tokens(loaded.processor, [size]) == [len(found["input_ids"][0]) - empty], size


def test_image_budget(loaded: Loaded, bases: dict[str, Path]) -> None:
    large, name = (300, 200), loaded.family.name
    full = image_tokens(loaded.processor, [large])[0]
    taken: dict[int, int] = {}
    for budget in range(1, full + 1):
        try:
            small = load(str(bases[name]), max_image_tokens=budget, device="cpu")
        except ConfigError as error:
            assert re.search(rf"takes (at least )?\d+ tokens here; --max-image-tokens {budget} is less", str(error))
            assert not taken, "a smaller budget was accepted"
            continue
        taken[budget] = image_tokens(small.processor, [large])[0]
        if len(taken) in (1, 3):
            batch = prompt_batch(small.processor, small.family, [[rows.user(rows.PLACE)]], [[Image.new("RGB", large)]])
            with torch.no_grad():
                small.model(**batch)
    assert all(tokens <= budget for budget, tokens in taken.items())
    assert taken[full] > full / 2
    assert len(taken) == 1 if loaded.family.set_budget is None else min(taken) < full / 2


def test_preference_batch_is_both_rows(loaded: Loaded) -> None:
    """One image pass and one batch give what two full passes give."""
    ask = [rows.user(rows.PLACE, "Colour?"), rows.assistant("Of what?"), rows.user(rows.PLACE, "Both.")]
    pair = rows.preference("p", ask, "Red and blue.", "No", [rows.picture("red"), rows.picture("blue", (70, 30))])
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

    for kind in loaded.family.targets[part]:
        net = type(loaded.model)(loaded.model.config)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=loaded.family.target_regex((part,), (kind,))), net)
        names = [name for name, value in net.named_parameters() if "lora_A" in name]
        assert names
        in_tower = [name.startswith(loaded.family.towers) for name in names]
        assert all(in_tower) if part != "language" else not any(in_tower)
        assert all(re.search("attn" if kind == "attention" else "mlp|linear_|proj$|proj.lora", name) for name in names)


def test_the_three_parts_are_all_linear_layers_of_the_model(loaded: Loaded) -> None:
    """Only the head, and what pools the tower's output for other tasks, is nobody's."""
    regex = re.compile(loaded.family.target_regex(families.PARTS, families.KINDS))
    linear = [name for name, module in loaded.model.named_modules() if type(module) is torch.nn.Linear]
    assert not [name for name in linear if not regex.fullmatch(name) and name != "lm_head"]


def test_unknown_parts_and_kinds(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match="no part named 'eyes'; valid|no part named 'eyes' in this model"):
        loaded.family.target_regex(("eyes",), ("mlp",))
    with pytest.raises(ConfigError, match="projector of this model has no attention layers; it has: mlp"):
        loaded.family.target_regex(("projector",), ("attention",))


def test_a_model_of_no_family_is_named() -> None:
    from transformers import BertConfig, Blip2Config

    with pytest.raises(ConfigError, match="m is not a vision-language model: its model_type is 'bert'.*llava"):
        families.for_model(BertConfig(), "m")
    with pytest.raises(ConfigError, match="m is a vision-language model of an unknown family.*'blip-2'.*llava"):
        families.for_model(Blip2Config(), "m")
