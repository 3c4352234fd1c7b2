"""What ``vlmtrain plan`` says of images that come more than once, against what a run does with them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import colour_rows as rows
import pytest
from rich.console import Console
from test_family_training import MAKE

from vlmtrain.job import Job
from vlmtrain.plan import Plan, plan
from vlmtrain.planning.show import show
from vlmtrain.training import begin


def asked(folder: Path, repeats: int = 3) -> Path:
    """Two images with that many questions each, and a row without an image."""
    made = [rows.sample("text", [rows.user("Say yes."), rows.assistant("Yes.")], [])]
    for image, size in (("red", (60, 40)), ("blue", (40, 90))):
        for turn in range(repeats):
            ask = rows.user(rows.PLACE, f"What is at {turn}?")
            made.append(rows.sample(f"{image}-{turn}", [ask, rows.assistant("Yes.")], [rows.picture(image, size)]))
    return rows.write(folder / f"asked-{repeats}", made)


def text_of(found: Plan) -> str:
    said = io.StringIO()
    show(found, Console(file=said, width=80))
    return said.getvalue()


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics2"])
def test_features_take_what_is_foretold(name: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base, data = model_folder(name), asked(tmp_path)
    found = plan("sft", model=str(base), data=[data], advice=False, device="cpu")
    options = {"model": str(base), "batch_size": 7, "cache_vision": "ram"}
    job = begin("sft", data=[data], out=tmp_path / "run", progress=False, options=options)
    assert isinstance(job, Job)
    trainer = MAKE["sft"](job)
    trainer.with_features(trainer.data_collator(list(trainer.train_dataset)))
    assert found.visual is not None
    repeats, kept = found.visual.repeats, trainer.cache.figures()
    assert repeats.images == kept["images"] == 2
    if name == "idefics2":
        # Marks around an image are counted as its tokens.
        assert kept["bytes"] < repeats.features < 2 * kept["bytes"]
    else:
        assert kept["bytes"] == repeats.features
    line = f"--cache-vision keeps what the tower makes of 2 images: at most {repeats.features / 1e6:.1f} MB"
    assert line in text_of(found)


def test_rows_of_one_image_share_what_is_foretold(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base, data = model_folder("qwen2_vl"), asked(tmp_path)
    found = plan("sft", model=str(base), data=[data], advice=False, device="cpu")
    assert found.visual is not None
    repeats, whole = found.visual.repeats, found.visual.budgets[0]
    assert (repeats.rows, repeats.groups) == (6, 2)
    assert repeats.shared == whole.image_tokens - whole.image_tokens // 3 > 0
    assert f"6 rows on 2 images: --group-by-image saves up to {repeats.shared / whole.tokens:.0%}" in text_of(found)
    preferred = rows.write(tmp_path / "pairs", rows.pairs(6))
    pairs = plan("dpo", model=str(base), data=[preferred], advice=False, device="cpu")
    assert pairs.visual is not None
    shared = pairs.visual.budgets[0].image_tokens // 3
    assert f"6 rows on 4 images: --group-by-image reads up to {shared:,} image tokens less" in text_of(pairs)
    once = plan("sft", model=str(base), data=[asked(tmp_path, 1)], advice=False, device="cpu")
    assert once.visual is not None and once.visual.repeats.shared == 0
    assert "--group-by-image" not in text_of(once)
    assert once.to_json()["data"]["repeats"]["images"] == 2
