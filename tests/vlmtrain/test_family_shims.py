"""What single families do beyond the rest, and that the libraries still need it: where one fails, a shim may go."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import tiny_models
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from vlmtrain import family as families
from vlmtrain import sft
from vlmtrain.budgets import count_tiles, tile_grid
from vlmtrain.collate import prompt_batch
from vlmtrain.merge import merge
from vlmtrain.model import Loaded, load, set_budget
from vlmtrain.trl_seam import image_tokens

Find = Callable[[str], Loaded]
QUICK: dict[str, Any] = {"batch_size": 2, "max_steps": 2, "learning_rate": 1e-2, "progress": False}


def plain_processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder)


def test_llava_and_pixtral_are_told_apart_by_their_towers(model_folder: Callable[[str], Path]) -> None:
    for name in ("llava", "pixtral"):
        config = transformers.AutoConfig.from_pretrained(model_folder(name))
        assert config.model_type == "llava"
        assert families.for_model(config).name == name


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
@pytest.mark.parametrize("longest", [56, 60, 100])
def test_tiles_are_counted_as_they_are_cut(name: str, longest: int, tmp_path: Path) -> None:
    """Also where the longest edge is no multiple of a tile's."""
    loaded = load(str(tiny_models.make(name, tmp_path / "model")), device="cpu")
    loaded.processor.image_processor.size = {"longest_edge": longest}
    draw = random.Random(longest)
    sizes = [(draw.randint(1, 120), draw.randint(1, 120)) for _ in range(30)] + [(57, 57), (1, 90), (90, 1)]
    found = loaded.processor.image_processor(
        [[Image.new("RGB", size)] for size in sizes], return_row_col_info=True, return_tensors="pt"
    )
    grids = [tile_grid(*size, longest, 28) for size in sizes]
    assert grids == [(r[0], c[0]) for r, c in zip(found["rows"], found["cols"], strict=True)]
    assert len(set(count_tiles(loaded.processor, sizes))) == len(set(grids))


def test_transformers_miscounts_tiles(loaded_of: Find) -> None:
    """Needed as long as this fails: the same grids from ``get_number_of_image_patches``."""
    images = loaded_of("idefics3").processor.image_processor
    sizes = [(width, height) for width in range(20, 120, 7) for height in range(20, 120, 9)]
    theirs = [
        images.get_number_of_image_patches(height, width, {"size": {"longest_edge": 60}})[1:] for width, height in sizes
    ]
    assert theirs != [tile_grid(width, height, 60, 28) for width, height in sizes]
    assert not hasattr(transformers.SmolVLMProcessor, "_get_num_multimodal_tokens"), "SmolVLM counts now"


def test_gemma3_crops_as_its_image_processor_says(loaded_of: Find, model_folder: Callable[[str], Path]) -> None:
    image, size = Image.new("RGB", (300, 100)), [(300, 100)]
    plain = plain_processor(model_folder("gemma3"))
    assert plain.image_processor.do_pan_and_scan
    uncut = len(plain(text=["<start_of_image>"], images=[[image]])["input_ids"][0])
    ours = loaded_of("gemma3").processor
    cut = len(ours(text=["<start_of_image>"], images=[[image]])["input_ids"][0])
    assert cut > 3 * uncut, "needed no longer: the plain processor heeds its image processor's settings"
    assert plain._get_num_multimodal_tokens(image_sizes=[(100, 300)])["num_image_tokens"] == [4]
    assert image_tokens(ours, size, loaded_of("gemma3").family) == [cut]
    for off in (False, None):
        ours = load(str(model_folder("gemma3")), device="cpu").processor
        ours.image_processor.do_pan_and_scan = off
        assert image_tokens(ours, size, loaded_of("gemma3").family) == [uncut]


def test_gemma3_projector_is_trained_in_full_on_request(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """It is no linear layer; shared features know that it is trained."""
    data, base = rows.write(tmp_path / "data", rows.colours(4)), model_folder("gemma3")
    options = {"model": str(base), "modules_to_save": ["multi_modal_projector"], **QUICK}
    out = sft.train(data, tmp_path / "run", **options).out
    saved = load_file(out / "adapter_model.safetensors")
    (key,) = [key for key in saved if key.endswith("mm_input_projection_weight")]
    before = load(str(base), device="cpu").model.model.multi_modal_projector.mm_input_projection_weight
    assert (saved[key] - before).abs().max() > 1e-3


def test_molmo2_writes_its_first_token_once(loaded_of: Find, model_folder: Callable[[str], Path]) -> None:
    """The processor puts the token before a text that does not have it, and moves the answers away from their spans."""
    plain, ours = plain_processor(model_folder("molmo2")), loaded_of("molmo2").processor
    talk = [{"role": "user", "content": [{"type": "text", "text": "Hi."}]}]
    written = plain.apply_chat_template(talk, tokenize=False)
    assert not written.startswith("<s>")
    assert plain.tokenizer.decode(plain(text=[written])["input_ids"][0]).startswith("<s><|im_start|>")
    assert ours.apply_chat_template(talk, tokenize=False) == "<s>" + written
    ids = prompt_batch(ours, loaded_of("molmo2").family, [talk], [[]])["input_ids"][0].tolist()
    assert ids.count(ours.tokenizer.bos_token_id) == 1


def test_pixtral_counts_nothing_for_what_it_cannot_see(loaded_of: Find) -> None:
    loaded, size = loaded_of("pixtral"), (1, 400)
    found = loaded.processor._get_num_multimodal_tokens(image_sizes=[(400, 1)])["num_image_tokens"]
    with pytest.raises(ValueError):
        loaded.processor(text=["[IMG]"], images=[Image.new("RGB", size)])
    assert found == [4], "needed no longer: the processor refuses the size or counts what it makes of it"
    with pytest.raises(ValueError, match="nothing is left of it"):
        image_tokens(loaded.processor, [size], loaded.family)


def test_llava_next_knows_the_same_tiles_on_both_sides(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """A budget takes grids away; the adapter keeps that, the loaded and the merged model follow."""
    data = rows.write(tmp_path / "data", rows.colours(4, (200, 150)))
    base = str(model_folder("llava_next"))
    out = sft.train(data, tmp_path / "run", model=base, max_image_tokens=50, **QUICK).out
    assert image_tokens(load(base, device="cpu").processor, [(200, 150)], families.load("llava_next"))[0] > 50
    back = load(base, out, device="cpu")
    merged = load(str(merge(out, tmp_path / "merged", model=base)), device="cpu")
    plain = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    ask, image = [rows.user(rows.PLACE, "What?")], Image.radial_gradient("L").convert("RGB").resize((200, 150))
    batch = prompt_batch(back.processor, back.family, [ask], [[image]])
    assert image_tokens(back.processor, [image.size], back.family)[0] <= 50
    with torch.no_grad():
        for other in (merged.model, plain):
            assert torch.allclose(back.model(**batch).logits, other(**batch).logits, atol=1e-4)


def test_a_budget_leaves_a_setting_that_fits_alone(loaded_of: Find, model_folder: Callable[[str], Path]) -> None:
    for name in families.names():
        family = families.load(name)
        if family.task != "text" or family.set_budget is None:
            continue
        processor = load(str(model_folder(name)), device="cpu").processor
        before = str(processor.image_processor)
        set_budget(processor, family, 100_000)
        assert str(processor.image_processor) == before, name


def test_qwen_budgets_hold_for_all_but_threads(loaded_of: Find) -> None:
    """Their processors make no side shorter than a token's edge."""
    draw = random.Random(3)
    for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        processor, family = copy.deepcopy(loaded_of(name).processor), loaded_of(name).family
        for tokens in (12, 9, 5, 3, 2, 1):
            set_budget(processor, family, tokens)
            for _ in range(150):
                width, height = (draw.randint(1, draw.choice([40, 800])) for _ in range(2))
                ratio = max(width / height, height / width)
                if ratio < 200:
                    most = tokens if ratio <= tokens else math.ceil(math.sqrt(tokens * ratio))
                    assert image_tokens(processor, [(width, height)], family)[0] <= most, (name, tokens, width, height)
