"""What a classifier sees: random views in training, the saved processor's view elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import labelled_rows
import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from transformers import AutoImageProcessor, BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

from vlmdata.errors import ConfigError, DataError
from vlmtrain.ordering import Grouped, Part, whole
from vlmtrain.pixels import PassOrder, PictureCollator, Pictures, RandomView, crop_centre, view_size


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def png(picture: Image.Image) -> bytes:
    import io

    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def rows(number: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "row": i, "label": i % 3, "images": [{"bytes": png(photo(40 + i, 50, i)), "path": None}]}
        for i in range(number)
    ]


@pytest.fixture
def processor() -> Any:
    return ViTImageProcessor(size={"height": 28, "width": 28})


def test_the_view_is_decided_by_seed_pass_and_row_alone(processor: Any) -> None:
    view, picture = RandomView(processor, 3, crop_scale=0.08), photo(60, 44)
    first = view(picture, 1, 7)
    torch.manual_seed(99)
    torch.rand(5)
    assert torch.equal(first, view(picture, 1, 7))
    others = [view(picture, 2, 7), view(picture, 1, 8), RandomView(processor, 4, crop_scale=0.08)(picture, 1, 7)]
    assert not any(torch.equal(first, other) for other in others)
    assert first.shape == (3, 28, 28) and first.dtype == torch.float32


def test_the_view_leaves_the_random_state_alone(processor: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    RandomView(processor, 0, crop_scale=0.5)(photo(50, 50), 0, 0)
    assert torch.equal(torch.rand(3), expected)


def test_the_view_is_what_the_guide_does(processor: Any) -> None:
    """RandomResizedCrop, flip, ToTensor, Normalize with the same random numbers."""
    view, picture = RandomView(processor, 0, crop_scale=0.08), photo(70, 50)
    guide = v2.Compose(
        [
            v2.RandomResizedCrop(28),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    import hashlib

    torch.manual_seed(int.from_bytes(hashlib.sha256(b"0:2:5").digest()[:8]) >> 1)
    torch.testing.assert_close(view(picture, 2, 5), guide(picture), atol=1e-6, rtol=0)


def test_flips_and_crops_really_happen(processor: Any) -> None:
    half = Image.new("RGB", (28, 28), "black")
    half.paste("white", (14, 0, 28, 28))
    view = RandomView(processor, 0, crop_scale=1.0)
    bright_right = [
        bool(pixels[..., 20:].mean() > pixels[..., :8].mean()) for pixels in (view(half, i, 0) for i in range(40))
    ]
    assert 8 < sum(bright_right) < 32


def test_evaluation_resizes_and_crops_instead_of_squashing(processor: Any) -> None:
    picture = photo(80, 40)
    squashed = processor(images=[picture], return_tensors="pt")["pixel_values"]
    crop_centre(processor)
    cropped = processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert squashed.shape == cropped.shape == (1, 3, 28, 28) and not torch.allclose(squashed, cropped)
    guide = v2.Compose(
        [v2.PILToTensor(), v2.Resize(28, antialias=True), v2.CenterCrop(28), v2.ToDtype(torch.float32, scale=True)]
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(cropped[0], (guide(picture) - mean) / std, atol=0.02, rtol=0)


def test_the_evaluation_view_survives_saving(processor: Any, tmp_path: Path) -> None:
    crop_centre(processor)
    processor.save_pretrained(tmp_path)
    again, picture = AutoImageProcessor.from_pretrained(tmp_path), photo(80, 40)
    both = [one(images=[picture], return_tensors="pt")["pixel_values"] for one in (processor, again)]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ViTImageProcessor(size={"height": 20, "width": 30}), (20, 30)),
        (BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}), (28, 28)),
        (ConvNextImageProcessor(size={"shortest_edge": 32}), (32, 32)),
    ],
    ids=["vit", "bit", "convnext"],
)
def test_view_size_is_the_size_that_comes_out(processor: Any, expected: tuple[int, int]) -> None:
    for _ in range(2):
        assert view_size(processor) == expected
        pixels = processor(images=[photo(90, 64)], return_tensors="pt")["pixel_values"]
        assert tuple(pixels.shape[2:]) == expected
        crop_centre(processor)


def test_a_processor_without_a_fixed_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pictures of a fixed size"):
        view_size(ViTImageProcessor(size={"max_height": 100, "max_width": 100}))


@pytest.mark.parametrize(("family", "kind"), labelled_rows.kinds())
def test_every_architecture_takes_both_views(family: str, kind: str, tmp_path: Path) -> None:
    from vlmtrain.model import load

    loaded = load(str(tiny_models.make(family, tmp_path / kind, kind=kind)), device="cpu")
    crop_centre(loaded.processor)
    collate = PictureCollator(loaded.processor, RandomView(loaded.processor, 0, crop_scale=0.3))
    evaluated = collate(rows(2))["pixel_values"]
    trained = collate([{**row, "epoch": 0} for row in rows(2)])["pixel_values"]
    side = 32 if family == "convnext" else 28
    assert evaluated.shape == trained.shape == (2, 3, side, side)
    with torch.no_grad():
        assert loaded.model(pixel_values=trained).logits.shape == (2, 2)


def test_passes_are_numbered_on_and_workers_see_the_same_pictures(processor: Any) -> None:
    data = rows(11)
    collate = PictureCollator(processor, RandomView(processor, 1, crop_scale=0.1))

    def passes(workers: int) -> list[torch.Tensor]:
        order = PassOrder(Grouped([Part(11, 11, whole(np.arange(11), 1))], 4, 4, 1), 11)
        loader = DataLoader(Pictures(data), 4, sampler=order, collate_fn=collate, num_workers=workers)
        found = []
        for epoch in range(2):
            order.set_epoch(epoch)
            assert sorted(number // 11 for number in order) == [epoch] * 11
            found += [batch["pixel_values"] for batch in loader]
        return found

    alone, many = passes(0), passes(2)
    assert all(torch.equal(a, b) for a, b in zip(alone, many, strict=True))
    assert not torch.equal(alone[0], alone[3])


def test_a_picture_that_cannot_be_decoded_names_its_row(processor: Any) -> None:
    bad = {**rows(1)[0], "images": [{"bytes": b"\x89PNG no", "path": None}]}
    with pytest.raises(DataError, match="'r0'"):
        PictureCollator(processor, None)([bad])
