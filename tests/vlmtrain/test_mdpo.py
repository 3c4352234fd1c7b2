"""mDPO's two terms on TRL's trainer: values by hand, pictures spoiled the same way every time, something learned."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import colour_rows as rows
import pytest
import torch
from PIL import Image, ImageStat
from run_files import logged

from vlmdata.errors import ConfigError
from vlmtrain import family as families
from vlmtrain.collate import Collator
from vlmtrain.config import resolve
from vlmtrain.dpo import ConditionalTrainer, make_trainer, train
from vlmtrain.mdpo import ConditionalCollator, corrupt
from vlmtrain.model import Loaded, load
from vlmtrain.runs import RunResult
from vlmtrain.training import begin

QUICK: dict[str, Any] = {"batch_size": 4, "learning_rate": 3e-3, "progress": False, "logging_steps": 1}
MDPO: dict[str, Any] = {"image_weight": 1.0, "anchor_weight": 1.0}
TEXT = rows.preference("text", [rows.user("Say yes.")], "Yes.", "No, it is blue.", [])


def halves(size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Half red, half blue: what is left of it after a crop depends on where it is cut."""
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2, 0, *size))
    return picture


def pictured(number: int) -> list[dict[str, Any]]:
    """Pairs whose pictures a crop spoils: a small square of the colour asked for, the rest is grey."""
    made = rows.pairs(number)
    for index, row in enumerate(made):
        picture = Image.new("RGB", (40, 40), "grey")
        picture.paste(rows.COLOURS[index % 4], (12, 12, 28, 28))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        row["images"] = [{"bytes": stream.getvalue(), "path": None}]
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.write(tmp_path_factory.mktemp("data") / "pairs", [*pictured(15), TEXT])


def trainer_for(data: Path, base: Path, out: Path, **options: Any) -> Any:
    options = {"model": str(base), "batch_size": 4, **options}
    job = begin("dpo", data=[data], out=out, progress=False, options=options)
    assert not isinstance(job, RunResult)
    return make_trainer(job)


def test_spoiled_pictures() -> None:
    """As large as before; a crop shows 1 to 20 % of the area, between 3:4 and 4:3; noise and mask show nothing."""
    coordinates = Image.merge(
        "RGB",
        [
            Image.linear_gradient("L").rotate(90).resize((200, 100)),
            Image.linear_gradient("L").resize((200, 100)),
            Image.new("L", (200, 100)),
        ],
    )
    shares, ratios = [], []
    for seed in range(200):
        found = corrupt(coordinates, "crop", random.Random(seed))
        assert found.size == (200, 100) and found.mode == "RGB"
        (left, right), (top, bottom), _ = found.getextrema()
        width, height = (right - left) / 255 * 200, (bottom - top) / 255 * 100
        shares.append(width * height / 20000)
        ratios.append(width / max(height, 1))
    assert min(shares) < 0.03 and 0.17 < max(shares) < 0.25
    assert 0.5 < min(ratios) and max(ratios) < 1.7
    noise = corrupt(halves(), "noise", random.Random(0))
    assert noise.size == (40, 40) and min(ImageStat.Stat(noise).stddev) > 60
    masked = corrupt(halves(), "mask", random.Random(0))
    assert masked.getcolors() == [(1600, (128, 0, 128))] or masked.getcolors() == [(1600, (127, 0, 127))]
    for how in ("crop", "noise"):
        same = [corrupt(halves(), how, random.Random(seed)).tobytes() for seed in (1, 1, 2)]
        assert same[0] == same[1] and (how == "crop" or same[0] != same[2])
    for size in ((1, 1), (1, 500), (900, 2)):
        assert corrupt(halves(size), "crop", random.Random(3)).size == size


def test_a_spoiled_pair_differs_in_its_pixels_only(loaded: Loaded) -> None:
    """Every family: same tokens, same labels, other pixels, and the same ones again."""
    made = [{**row, "row": place} for place, row in enumerate(pictured(2))]
    collate = ConditionalCollator(loaded.processor, loaded.family, "noise", seed=0)
    batch, again = collate(made), collate(made[::-1])
    chosen = [{**row, "messages": [*row["prompt"], *row["chosen"]]} for row in made]
    plain = Collator(loaded.processor, loaded.family)(chosen)
    for key, value in plain.items():
        spoiled = batch[f"corrupted_{key}"]
        assert spoiled.shape == value.shape, key
        assert torch.equal(spoiled, value) is (key != "pixel_values"), key
    pixels = [side["corrupted_pixel_values"] for side in (batch, again)]
    half = len(pixels[0]) // 2
    assert torch.equal(pixels[0][:half], pixels[1][half:]), "by row, not by place in the batch"
    assert not torch.equal(pixels[0][:half], pixels[0][half:])


def summed(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    labels = batch["labels"][:, 1:]
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1].float()
    logps = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (logps * (labels >= 0)).sum(1)


@pytest.mark.parametrize("reference", ["precompute", "live"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "idefics3"])
def test_the_loss_is_the_formula(
    family: str, reference: str, bases: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    """From plain forwards of policy and base on chosen, rejected and spoiled rows, after two steps of training."""
    options = {**MDPO, "image_weight": 0.7, "anchor_weight": 0.4, "anchor_delta": 0.05, "beta": 0.3}
    trainer = trainer_for(
        data, bases[family], tmp_path / "run", reference=reference, max_steps=2, learning_rate=3e-3, **options
    )
    assert isinstance(trainer, ConditionalTrainer)
    trainer.train()
    made = [dict(row) for row in trainer.train_dataset if row["id"] in ("pair-0", "pair-1", "pair-2", "text")]
    trainer.model.eval()
    batch = trainer.data_collator(made)
    found = trainer.compute_loss(trainer.model, dict(batch)).item()
    fresh = load(str(bases[family]), device="cpu")
    plain = Collator(fresh.processor, fresh.family)
    sides = {
        side: plain([{**row, "messages": [*row["prompt"], *row[side]]} | drop_texts(row) for row in made])
        for side in ("chosen", "rejected")
    }
    sides["spoiled"] = {key.removeprefix("corrupted_"): batch[key] for key in batch if key.startswith("corrupted_")}
    with torch.no_grad():
        rewards = {
            side: 0.3 * (summed(trainer.model, inputs) - summed(fresh.model, inputs)) for side, inputs in sides.items()
        }
    sigmoid = torch.nn.functional.logsigmoid
    pictures = torch.tensor([bool(row["images"]) for row in made])
    expected = -(
        sigmoid(rewards["chosen"] - rewards["rejected"])
        + 0.7 * sigmoid(rewards["chosen"] - rewards["spoiled"]) * pictures
        + 0.4 * sigmoid(rewards["chosen"] - 0.05)
    ).mean()
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert abs((rewards["chosen"] - rewards["spoiled"])[pictures]).max() > 1e-4, "the pictures matter"


def drop_texts(row: dict[str, Any]) -> dict[str, Any]:
    """The collator is to render these rows anew."""
    return {"id": row["id"], "row": row["row"]}


def test_it_learns_to_prefer_the_picture_that_belongs_to_the_answer(base: Path, data: Path, tmp_path: Path) -> None:
    options = {"model": str(base), "epochs": 6, "parts": "vision,projector,language:attention,mlp", **QUICK}
    train(data, tmp_path / "mdpo", image_corruption="mask", **MDPO, **options)
    entries = logged(tmp_path / "mdpo")
    # ln 2 for each of three terms, the text row without the second.
    assert entries[0]["loss"] == pytest.approx(3 * math.log(2), abs=0.2)
    assert entries[0]["image_margin"] == pytest.approx(0, abs=1e-3)
    last = entries[-4:]
    assert sum(entry["image_margin"] for entry in last) / 4 > 0.1
    assert sum(entry["image_accuracy"] for entry in last) / 4 > 0.9
    assert sum(entry["reward_chosen"] for entry in last) / 4 > 0.1
    assert {"reward_corrupted", "reward_margin", "reward_accuracy"} <= entries[-1].keys()


def test_what_is_shown_fits_a_terminal(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(data, tmp_path / "run", model=str(base), max_steps=2, **MDPO, **{**QUICK, "progress": True})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 2 and all("  img acc " in line and len(line) <= 78 for line in lines)


def test_the_anchor_alone_needs_no_second_picture(base: Path, data: Path, tmp_path: Path) -> None:
    trainer = trainer_for(data, base, tmp_path / "run", anchor_weight=1.0)
    batch = trainer.data_collator(list(trainer.train_dataset)[:4])
    assert not [key for key in batch if key.startswith("corrupted")]
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(2 * math.log(2), abs=1e-4)


MORE = [name for name in families.names() if families.load(name).task == "text" and name != "llava"]


@pytest.mark.parametrize("family", ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_every_way_is_the_same_training(
    family: str, model_folder: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    """Reference before or live, features once or not, compact head or not."""
    options = {"model": str(model_folder(family)), "max_steps": 4, **MDPO, **QUICK}
    train(data, tmp_path / "fast", **options)
    plain = {"reference": "live", "share_features": False, "share_prefix": False, "compact_head": False}
    train(data, tmp_path / "plain", **plain, **options)
    fast, slow = (logged(tmp_path / name) for name in ("fast", "plain"))
    for key in ("loss", "reward_margin", "image_margin"):
        assert [entry[key] for entry in fast] == pytest.approx([entry[key] for entry in slow], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**MDPO, "ld_alpha": 0.5}, "ld_alpha does not go with image_weight and anchor_weight"),
        ({**MDPO, "f_divergence_type": "forward_kl"}, "need f_divergence_type reverse_kl"),
        ({"image_corruption": "noise"}, "image_corruption does nothing without image_weight"),
        ({"anchor_delta": 1}, "anchor_delta does nothing without anchor_weight"),
        ({"image_weight": -1}, "image_weight is -1.0, expected at least 0"),
        ({**MDPO, "image_corruption": "blur"}, "valid: crop, noise, mask"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("dpo", options)
