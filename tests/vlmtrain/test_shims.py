"""What the libraries get wrong for PaliGemma, Mllama, BLIP-2 and Idefics2; if one of these fails, a shim may go.

Beside each fault stands that our batches do not have it, and are what the model's own processor makes where it works.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
import transformers
import trl
from PIL import Image
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from vlmdata.errors import ConfigError
from vlmtrain.collate import IGNORED, Collator, PreferenceCollator, prompt_batch
from vlmtrain.dpo import train
from vlmtrain.dropout import no_dropout
from vlmtrain.encode import encode
from vlmtrain.keys import Supervision
from vlmtrain.model import Loaded, load
from vlmtrain.supervision import SupervisedCollator

Find = Callable[[str], Loaded]
Folder = Callable[[str], Path]
RED, WIDE = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (90, 31), "blue")
ASK = [rows.user(rows.PLACE, "What colour?"), rows.assistant("It is red.")]
ROW = rows.sample("a", ASK, [rows.picture("red")])
WORDS = rows.sample("b", [rows.user("Say yes."), rows.assistant("Yes.")], [])
MASKED = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- if m['role'] == 'assistant' -%}{%- generation -%}{{- m['content'][0]['text'] + '<|im_end|>' -}}"
    "{%- endgeneration -%}{{- '\\n' -}}{%- else -%}"
    "{%- for p in m['content'] -%}{{- '<image>' if p['type'] == 'image' else p['text'] -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def plain_rows(*asks: tuple[str, str, list[Image.Image]]) -> list[dict[str, Any]]:
    """Conversations as TRL takes them."""
    return [
        {
            "images": images,
            "messages": [
                {"role": "user", "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": ask}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
        }
        for ask, answer, images in asks
    ]


def plain_pair(image: Image.Image) -> dict[str, Any]:
    (row,) = plain_rows(("What colour?", "It is red.", [image]))
    ask, answer = row["messages"]
    return {"images": [image], "prompt": [ask], "chosen": [answer], "rejected": [answer]}


def bare(name: str, tmp_path: Path, **options: Any) -> Loaded:
    """Published without a chat template, so with its family's."""
    folder = tiny_models.make(name, tmp_path / name, chat_template=False, **options)
    return load(str(folder), device="cpu")


def said(processor: Any, labels: torch.Tensor) -> str:
    text: str = processor.tokenizer.decode(labels[labels != IGNORED])
    return text


def logits(model: Any, batch: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    return found


# PaliGemma ------------------------------------------------------------------------------------------------------------


def leak(model: Any, batch: Any) -> float:
    """How much the logits before the last token change when it does."""
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -1] = 7
    return (logits(model, changed) - logits(model, batch))[0, :-1].abs().max().item()


def test_trl_leaks_answers_of_paligemma(loaded_of: Find) -> None:
    loaded = loaded_of("paligemma")
    theirs = DataCollatorForVisionLanguageModeling(loaded.processor)(plain_rows(("What?", "Red.", [RED])))
    assert not theirs["token_type_ids"].any() and leak(loaded.model, theirs) > 1e-4
    ours = Collator(loaded.processor, loaded.family)([ROW])
    assert leak(loaded.model, ours) == 0


def test_trl_cannot_pair_paligemma(loaded_of: Find) -> None:
    loaded = loaded_of("paligemma")
    with pytest.raises(ValueError, match="`images` are expected"):
        DataCollatorForVisionPreference(loaded.processor)([plain_pair(RED)])


def test_paligemma_is_read_as_its_own_processor_does(tmp_path: Path) -> None:
    """Image, BOS, question, line feed; in training, as ``suffix``, answer and EOS."""
    loaded = bare("paligemma", tmp_path)
    processor, family = loaded.processor, loaded.family
    for images in ([RED], [RED, WIDE]):
        theirs = processor(text="<image>" * len(images) + "What colour?", images=[images], return_tensors="pt")
        ask = [rows.user(*[rows.PLACE] * len(images), "What colour?")]
        ours = prompt_batch(processor, family, [ask], [images])
        assert processor.tokenizer.decode(ours["input_ids"][0]).endswith("<image><s>What colour?\n")
        for key in ("input_ids", "token_type_ids", "pixel_values", "attention_mask"):
            assert torch.equal(ours[key], theirs[key]), key
    theirs = processor(text="<image>What colour?", images=[RED], suffix="It is red.", return_tensors="pt")
    ours = Collator(processor, family)([ROW])
    for key in ("input_ids", "token_type_ids", "pixel_values", "labels"):
        assert torch.equal(ours[key], theirs[key]), key
    assert said(processor, ours["labels"]) == "It is red.<|im_end|>"


def test_what_follows_the_first_answer_of_paligemma_is_causal(tmp_path: Path) -> None:
    """The same in training, in pairs and in generation."""
    loaded = bare("paligemma", tmp_path)
    more = [*ASK, rows.user("And ", rows.PLACE, "?"), rows.assistant("Blue.")]
    shown = [rows.picture("red"), rows.picture("blue")]
    batch = Collator(loaded.processor, loaded.family)([rows.sample("m", more, shown), WORDS])
    first = int((batch["labels"][0] != IGNORED).int().argmax())
    assert batch["token_type_ids"][0].tolist() == [0] * first + [1] * (batch["input_ids"].shape[1] - first)
    text = loaded.processor.tokenizer.decode(batch["input_ids"][0])
    assert text == "<image>" * 4 + "<s>What colour?\nIt is red.<|im_end|>" + "<image>" * 4 + "And ?\nBlue.<|im_end|>"
    pair = rows.preference("p", more[:-1], "Blue.", "It is green, a square.", shown)
    sides = PreferenceCollator(loaded.processor, loaded.family)([pair])
    read = sides["attention_mask"][:, first:].bool()
    assert not sides["token_type_ids"][:, :first].any() and sides["token_type_ids"][:, first:][read].all()
    images = [RED, Image.new("RGB", (40, 40), "blue")]
    ask = prompt_batch(loaded.processor, loaded.family, [more[:-1], [rows.user("Hm.")]], [images, []])
    width = ask["input_ids"].shape[1]
    assert ask["token_type_ids"].tolist() == [[0] * first + [1] * (width - first), [0] * width]


def test_nothing_is_learned_of_what_paligemma_sees_both_ways(loaded_of: Find) -> None:
    loaded = loaded_of("paligemma")
    batch = SupervisedCollator(loaded.processor, loaded.family, Supervision(train_on="all"))([ROW])
    assert said(loaded.processor, batch["labels"]) == "It is red.<|im_end|>\n"


# Mllama ---------------------------------------------------------------------------------------------------------------


def test_trl_ends_the_sight_of_mllama_with_the_prompt(loaded_of: Find) -> None:
    loaded = loaded_of("mllama")
    theirs = DataCollatorForVisionPreference(loaded.processor)([plain_pair(RED)])
    assert theirs["cross_attention_mask"].shape[1] < theirs["input_ids"].shape[1]
    pair = rows.preference("p", ASK[:1], "It is red.", "Blue, a circle.", [rows.picture("red")])
    ours = PreferenceCollator(loaded.processor, loaded.family)([pair])
    assert ours["cross_attention_mask"].shape[:2] == ours["input_ids"].shape
    answer = ours["completion_mask"].bool()
    assert ours["cross_attention_mask"][answer].flatten(1).any(1).all()


def test_mllama_is_read_as_its_own_processor_does(tmp_path: Path) -> None:
    loaded = bare("mllama", tmp_path)
    made = [
        rows.sample("1", ASK, [rows.picture("red")]),
        rows.sample(
            "2",
            [rows.user(rows.PLACE, rows.PLACE, "Both?"), rows.assistant("So."), rows.user(rows.PLACE), ASK[1]],
            [rows.picture("red"), rows.picture("blue", (90, 31)), rows.picture("green", (20, 60))],
        ),
    ]
    ours = Collator(loaded.processor, loaded.family)(made)
    texts = [loaded.processor.apply_chat_template([copy.deepcopy(turn) for turn in row["messages"]]) for row in made]
    images = [[RED], [RED, WIDE, Image.new("RGB", (20, 60), "green")]]
    theirs = loaded.processor(
        text=texts, images=images, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False
    )
    assert texts[0].startswith("<s><|start_header_id|>user")
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key


def test_plain_mllama_depends_on_the_rest_of_the_batch(loaded_of: Find, model_folder: Folder) -> None:
    loaded = loaded_of("mllama")
    plain = transformers.AutoModelForImageTextToText.from_pretrained(model_folder("mllama"))
    two = rows.sample("2", [rows.user(rows.PLACE, rows.PLACE, "Both?"), ASK[1]], [rows.picture("red")] * 2)
    collate = Collator(loaded.processor, loaded.family)
    together = collate([ROW, WORDS, two])
    for number, row in enumerate((ROW, WORDS)):
        alone = collate([row])
        width = alone["input_ids"].shape[1]
        theirs, ours = logits(plain, together)[number, :width], logits(loaded.model, together)[number, :width]
        torch.testing.assert_close(logits(plain, alone), logits(loaded.model, alone))
        torch.testing.assert_close(ours, logits(plain, alone)[0], rtol=1e-4, atol=1e-4)
        assert (theirs - ours).abs().max() > 1e-3, "needed no longer"


def test_mllama_writes_the_same_beside_rows_with_other_images(loaded_of: Find) -> None:
    loaded = loaded_of("mllama")
    shown: list[list[Image.Image]] = [[], [RED], [RED, WIDE], [WIDE, RED, WIDE]]
    asks = [[rows.user("Hm. ", *[rows.PLACE] * len(images), "So?")] for images in shown]

    def written(places: list[int]) -> list[list[int]]:
        batch = prompt_batch(loaded.processor, loaded.family, [asks[n] for n in places], [shown[n] for n in places])
        found = loaded.model.generate(**batch, max_new_tokens=8, do_sample=False)
        return [row.tolist() for row in found[:, batch["input_ids"].shape[1] :]]

    alone = [written([number])[0] for number in range(4)]
    assert len({tuple(tokens) for tokens in alone}) > 1
    for together, tokens in zip(written([0, 1, 2, 3]), alone, strict=True):
        assert together[: len(tokens)] == tokens


def test_mllama_reads_what_it_cannot_say(loaded_of: Find) -> None:
    """Its image token has a row in the embedding and none in the head."""
    loaded = loaded_of("mllama")
    head = loaded.model.get_output_embeddings().weight
    assert loaded.processor.image_token_id == len(head) == len(loaded.model.get_input_embeddings().weight) - 8
    batch = SupervisedCollator(loaded.processor, loaded.family, Supervision(train_on="all"))([ROW])
    assert batch["labels"].max() < len(head) and loaded.model(**batch).loss.isfinite()


# BLIP-2 ---------------------------------------------------------------------------------------------------------------


def test_trl_finds_no_backbone_of_blip2(loaded_of: Find, model_folder: Folder) -> None:
    loaded = loaded_of("blip2")
    batch = Collator(loaded.processor, loaded.family)([ROW, WORDS])
    plain = transformers.AutoModelForImageTextToText.from_pretrained(model_folder("blip2"))
    add_fused_lm_head(plain)
    with pytest.raises(AttributeError, match="no attribute 'last_hidden_state'"):
        plain(**batch, fused_lm_head=True)
    ours = copy.deepcopy(loaded.model)
    assert ours.blip.model is ours, "a copy has its own"
    add_fused_lm_head(ours)
    with torch.no_grad():
        found = ours(**batch, fused_lm_head=True)
        whole = logits(loaded.model, batch)[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    expected = whole.gather(2, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == IGNORED, 0)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-4)


def test_blip2_loses_its_template(model_folder: Folder, loaded_of: Find) -> None:
    assert (model_folder("blip2") / "chat_template.jinja").is_file()
    assert transformers.AutoProcessor.from_pretrained(model_folder("blip2")).chat_template is None
    assert "im_start" in loaded_of("blip2").processor.chat_template


def test_dropout_that_trl_does_not_find(model_folder: Folder, tmp_path: Path) -> None:
    """OPT's is a number: with it, DPO does not start at ln 2."""
    net = load(str(model_folder("blip2")), device="cpu").model
    disable_dropout_in_model(net)
    layer = net.language_model.model.decoder.layers[0]
    assert layer.dropout == 0.1, "needed no longer"
    no_dropout(net)
    assert layer.dropout == 0 and net.config.text_config.dropout == 0.1
    data = rows.write(tmp_path / "data", rows.pairs(4))
    train(data, tmp_path / "run", model=str(model_folder("blip2")), max_steps=1, progress=False)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_blip2_captions_and_questions(tmp_path: Path) -> None:
    """A caption has no prompt; a question has the form it was trained with, and what was said before in front."""
    loaded = bare("blip2", tmp_path)
    shown = [rows.picture("red")]
    more = [*ASK, rows.user("Why?"), rows.assistant("Paint.")]
    caption = [rows.user(rows.PLACE), rows.assistant("a red square")]
    empty = [rows.user(rows.PLACE, ""), rows.assistant("a red square")]
    made = [rows.sample("x", turns, shown) for turns in (caption, empty, more)]
    batch = Collator(loaded.processor, loaded.family)(made)
    texts = loaded.processor.tokenizer.batch_decode(batch["input_ids"])
    queries = "<image>" * 4
    assert [text.replace("<pad>", "") for text in texts[:2]] == [queries + "<s>a red square<|im_end|>"] * 2
    asked = "<s>Question: What colour? Answer: It is red.<|im_end|> Question: Why? Answer: Paint.<|im_end|>"
    assert texts[2] == queries + asked
    assert said(loaded.processor, batch["labels"][0]) == "a red square<|im_end|>"
    assert said(loaded.processor, batch["labels"][2]) == " It is red.<|im_end|> Paint.<|im_end|>"
    ask = prompt_batch(loaded.processor, loaded.family, [caption[:1]], [[RED]])
    start = [loaded.model.config.image_token_index] * 4 + [loaded.model.config.text_config.bos_token_id]
    assert ask["input_ids"].tolist() == [start], "where the model itself starts a caption"
    with torch.no_grad():
        theirs = loaded.model.generate(pixel_values=ask["pixel_values"], max_new_tokens=4, do_sample=False)
        ours = loaded.model.generate(**ask, max_new_tokens=4, do_sample=False)
    assert torch.equal(theirs, ours)


def test_blip2_reads_templates_that_leave_images_to_its_processor(loaded_of: Find) -> None:
    loaded = loaded_of("blip2")
    ours = encode(loaded.processor, loaded.family, ["What?", "No."], [[RED], []], side="right")
    theirs = loaded.processor(text=["What?"], images=[RED], return_tensors="pt")
    width = theirs["input_ids"].shape[1]
    assert torch.equal(ours["input_ids"][:1, :width], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert not (ours["input_ids"][1] == loaded.model.config.image_token_index).any()


def test_blip2_with_another_writer_is_refused(tmp_path: Path, model_folder: Folder) -> None:
    from vlmtrain import family as families

    config = transformers.AutoConfig.from_pretrained(model_folder("blip2"))
    config.use_decoder_only_language_model, config.text_config = False, transformers.T5Config()
    with pytest.raises(ConfigError, match="m writes with t5, an encoder-decoder; expected"):
        families.for_model(config, "m")


# Idefics2 and the rest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idefics2", "paligemma"])
def test_assistant_masks_are_shifted(name: str, model_folder: Folder) -> None:
    loaded = load(str(model_folder(name)), device="cpu")
    loaded.processor.chat_template = MASKED
    (row,) = plain_rows(("What colour?", "It is red.", [RED]))
    row["messages"][0]["content"][0]["image"] = RED
    theirs = loaded.processor.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = (torch.as_tensor(theirs[key]).flatten() for key in ("input_ids", "assistant_masks"))
    assert loaded.processor.tokenizer.decode(ids[mask.bool()]) != "It is red.<|im_end|>", "needed no longer"
    batch = Collator(loaded.processor, loaded.family)([ROW])
    assert said(loaded.processor, batch["labels"]) == "It is red.<|im_end|>"


@pytest.mark.parametrize("split", [True, False])
def test_idefics2_is_read_as_its_own_processor_does(split: bool, tmp_path: Path) -> None:
    """Touching images, words on them, and the rest of what its call rewrites."""
    loaded = load(str(tiny_models.make("idefics2", tmp_path / "m", split=split)), device="cpu")
    texts = ["<image>What?", "a<image><image>b", "<image> <image>\n.", "none", "x<image><s><image>", "<image>"]
    counts = [text.count("<image>") for text in texts]
    images = [[(RED, WIDE)[place % 2] for place in range(count)] for count in counts]
    ours = encode(loaded.processor, loaded.family, texts, images, side="right")
    for text, shown, row, mask in zip(texts, images, ours["input_ids"], ours["attention_mask"], strict=True):
        theirs = loaded.processor(text=text, images=[shown] if shown else None)["input_ids"][0]
        assert row[mask.bool()].tolist() == theirs, text
    theirs = loaded.processor(text=[t for t in texts if "<" in t], images=[i for i in images if i], padding=True)
    for key in ("pixel_values", "pixel_attention_mask"):
        assert torch.equal(ours[key], torch.as_tensor(theirs[key])), key


def test_four_bits_lose_their_gradient_after_an_evaluation(tmp_path: Path) -> None:
    """On CPUs with AVX512-BF16 only."""
    layers = pytest.importorskip("bitsandbytes.nn.modules")
    if not layers.has_avx512bf16():
        pytest.skip("this CPU is not concerned")
    folder = str(tiny_models.make("llava", tmp_path / "m", width=64))
    loaded = load(folder, quantize="4bit", device="cpu", trainable=True)
    net = loaded.model
    batch = Collator(loaded.processor, loaded.family)([ROW, WORDS])
    words = net.get_input_embeddings().requires_grad_(True)

    def gradient() -> torch.Tensor:
        words.zero_grad()
        net.train()(**batch).loss.backward()
        assert words.weight.grad is not None
        return words.weight.grad.clone()

    first = gradient()
    for repack, same in ((False, True), (True, False)):
        for module in net.modules():
            if repack and isinstance(module, layers.Linear4bit):
                module.support_avx512bf16_for_cpu = True
        words.requires_grad_(False)
        logits(net.eval(), batch)
        words.requires_grad_(True)
        assert torch.allclose(gradient(), first, rtol=1e-4, atol=1e-6) is same, "needed no longer"


def test_only_pictures_of_idefics2_are_left_out_of_everything(loaded_of: Find) -> None:
    """Not the word that touches one, before which the processor puts a space."""
    loaded = loaded_of("idefics2")
    batch = SupervisedCollator(loaded.processor, loaded.family, Supervision(train_on="all"))([ROW])
    words = "<|im_start|>user\n What colour?<|im_end|>\n<|im_start|>assistant\nIt is red.<|im_end|>\n"
    assert said(loaded.processor, batch["labels"]) == words


def test_trl_ends_no_caption(loaded_of: Find) -> None:
    loaded = loaded_of("llava")
    row = {"images": [RED], "prompt": "<image>", "completion": "a red square"}
    theirs = DataCollatorForVisionLanguageModeling(loaded.processor)([row])
    assert said(loaded.processor, theirs["labels"]).endswith("a red square"), "needed no longer"
    caption = rows.sample("c", [rows.user(rows.PLACE), rows.assistant("a red square")], [rows.picture("red")])
    ours = Collator(loaded.processor, loaded.family)([caption])
    assert said(loaded.processor, ours["labels"]) == "a red square<|im_end|>"
    assert trl.__version__.startswith("1.16")
