"""The local model on its devices, with its adapter merged, and what is written down of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from local_items import LIMITS, local, questions, ranked, said

from vlmdata.errors import ConfigError
from vlmeval.models.local import Local


@pytest.mark.parametrize("spread", ["auto", '{"": "cpu"}', {"model": "cpu", "lm_head": "cpu"}])
def test_a_spread_model_answers_the_same(base: Path, pictures: Path, spread: Any) -> None:
    assert said(local(base, pictures, device_map=spread), questions(3)) == said(local(base, pictures), questions(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": "everywhere"}, r"is 'everywhere'; expected auto, balanced, .*single device is --device"),
        ({"device_map": "{}"}, "device_map is '{}'; expected"),
        ({"device_map": '{"": "disk"}'}, "weights on disk are not supported"),
        ({"device_map": '{"": 0}'}, "there are 0 CUDA devices"),
        ({"device_map": '{"": "warp"}'}, "no such kind of device"),
        ({"device_map": '{"": true}'}, "expected a device like cpu"),
        ({"device_map": "auto", "device": "cpu"}, "exclude each other"),
        ({"merged": True}, "--merged merges an adapter"),
        ({"answers": "guess"}, "--answers is 'guess'; valid: generate, logits, both"),
        ({"merged": True, "adapter": True, "quantize": "4bit"}, "leave out --quantize 4bit"),
    ],
)
def test_options_that_cannot_be(base: Path, adapter: Path, options: dict[str, Any], words: str) -> None:
    if options.get("adapter"):
        options = {**options, "adapter": adapter}
    with pytest.raises(ConfigError, match=words):
        local(base, None, **options)


def test_a_map_with_holes_is_refused_in_one_line(base: Path) -> None:
    with pytest.raises(ConfigError, match="device_map for .* does not give any device") as caught:
        local(base, None, device_map={"lm_head": "cpu"}).load()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import peft

    from vlmtrain.model import load, save

    loaded = load(str(base), device="cpu")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "linear_1"], init_lora_weights=False)
    out = tmp_path_factory.mktemp("adapter") / "run"
    save(peft.get_peft_model(loaded.model, config), loaded.processor, out, "llava")
    return out


def test_merged_answers_are_the_same(base: Path, adapter: Path, pictures: Path) -> None:
    beside, merged = (local(base, pictures, adapter=adapter, merged=flag) for flag in (False, True))
    items = [*questions(5), *ranked(3)]
    ours, theirs = said(beside, items), said(merged, items)
    assert [ours[item.id].text for item in items] == [theirs[item.id].text for item in items]
    assert ours != said(local(base, pictures), items)
    assert merged.describe()["merged"] and not beside.describe()["merged"]
    assert not hasattr(merged.loaded.model, "peft_config") and hasattr(beside.loaded.model, "peft_config")


def test_a_quantized_base_is_not_merged_with(base: Path, adapter: Path, pictures: Path) -> None:
    four = local(base, pictures, adapter=adapter, quantize="4bit")
    assert said(four, questions(2))[0].error is None
    assert four.describe()["quantize"] == "4bit"


def test_a_full_run_is_its_own_model(base: Path, pictures: Path) -> None:
    whole = Local(None, base, images=pictures, batch_size=4, max_new_tokens=LIMITS, device="cpu")
    assert said(whole, questions(2)) == said(local(base, pictures), questions(2))
    with pytest.raises(ConfigError, match="--merged merges an adapter"):
        Local(None, base, images=None, batch_size=1, max_new_tokens=LIMITS, merged=True)


def test_what_is_written_down(base: Path, adapter: Path, pictures: Path, tmp_path: Path) -> None:
    model = local(base, pictures, adapter=adapter)
    before = model.describe()
    model.load()
    known, around = model.describe(), model.environment()
    assert before.items() <= known.items()
    json.dumps([known, around], allow_nan=False)
    assert len(known["adapter_sha256"]) == len(known["base_hash"]) == len(known["prompt_format_sha256"]) == 64
    assert (known["decoding"], known["answers"], known["family"]) == ("greedy", "generate", "llava")
    assert known["generation_config"]["eos_token_id"] is not None
    assert around["padding_side"] == "left" and around["attention"] == "sdpa" and around["seed"] == 0
    assert {"torch", "transformers", "peft", "tokenizers"} <= around["versions"].keys()
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    changed = local(base, pictures, adapter=other)
    changed.load()
    assert changed.describe()["adapter_sha256"] == known["adapter_sha256"]
    assert changed.describe()["prompt_format_sha256"] != known["prompt_format_sha256"]


def test_an_adapter_of_the_hub_is_known_by_its_snapshot(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id stands for a snapshot in the cache, whose folder is named by the commit."""
    import huggingface_hub

    commit = "0123456789" * 4
    snapshot = tmp_path / "models--org--name" / "snapshots" / commit
    shutil.copytree(adapter, snapshot)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    known = local(base, None, adapter="org/name").describe()
    assert known["adapter_revision"] == commit
    assert known["adapter_sha256"] == local(base, None, adapter=adapter).describe()["adapter_sha256"]
