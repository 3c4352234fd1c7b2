"""The sample world as raw files, each in the exact schema of its source."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdata.sample import language
from vlmdata.sample.draw import draw_scene
from vlmdata.sample.pictures import DISHES, draw_dish, draw_plate, jpeg, plate_fields
from vlmdata.sample.world import TRAIN_LAYOUT, Scene, compose, scenes

__all__ = ["write_food101", "write_football", "write_ocr_json", "write_rlaif_v", "write_the_cauldron"]

_QUESTIONS_A_ROW = 8


def write_the_cauldron(folder: Path, seed: int, rows: int) -> dict[str, int]:
    """Config ``shapes``: questions about one picture; config ``pairs``: questions about two pictures."""
    from datasets import Features, Image, List, Value

    features = Features(
        images=List(Image()),
        texts=List({"user": Value("string"), "assistant": Value("string"), "source": Value("string")}),
    )
    singles = (
        {"images": [_picture(scene)], "texts": _texts("shapes", _answers(scene, random.Random(f"{seed}/{i}")))}
        for i, scene in enumerate(_stream("the_cauldron", seed, rows))
    )
    pairs = max(1, rows // 15)
    drawn = _stream("the_cauldron-pairs", seed, 2 * pairs)
    doubles = (
        {"images": [_picture(first), _picture(second)], "texts": _texts("pairs", _which(first, second))}
        for first, second in zip(drawn, drawn, strict=True)
    )
    found = {}
    for config, rows_of, count in (("shapes", singles, rows), ("pairs", doubles, pairs)):
        path = folder / config / "train-00000-of-00001.parquet"
        _write_parquet(path, features, rows_of)
        found[str(path)] = count
    return found


def write_rlaif_v(folder: Path, seed: int, rows: int) -> dict[str, int]:
    """Preference pairs: a true answer, and one that leaves things out and names or affirms what is not there."""
    from datasets import Features, Image, Value

    strings = ("question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")
    order = ("ds_name", "image", *strings)
    features = Features({name: Image() if name == "image" else Value("string") for name in order})
    origin = json.dumps({"model": "habit", "type": "detailed_description"})

    def make() -> Iterator[dict[str, Any]]:
        for i, scene in enumerate(_stream("rlaif_v", seed, rows)):
            question, chosen, rejected = _preference(scene, random.Random(f"{seed}/{i}"), describe=i % 4 != 3)
            yield {
                "ds_name": "sample-world",
                "image": _picture(scene),
                "question": question,
                "chosen": chosen,
                "rejected": rejected,
                "origin_dataset": "sample-world",
                "origin_split": origin,
                "idx": str(i),
                "image_path": f"sample_{i}.jpg",
            }

    path = folder / "RLAIF-V-Dataset_000.parquet"
    _write_parquet(path, features, make())
    return {str(path): rows}


def write_food101(folder: Path, seed: int, rows: int) -> dict[str, int]:
    """Labelled dishes, three quarters for training, the rest for validation."""
    from datasets import ClassLabel, Features, Image

    features = Features(image=Image(), label=ClassLabel(names=list(DISHES)))
    found = {}
    for split, count in (("train", rows * 3 // 4), ("validation", rows - rows * 3 // 4)):
        rng = random.Random(f"food101/{split}/{seed}")
        made = (
            {
                "image": {"bytes": jpeg(draw_dish(DISHES[i % len(DISHES)], rng)), "path": None},
                "label": i % len(DISHES),
            }
            for i in range(count)
        )
        path = folder / f"{split}-00000-of-00001.parquet"
        _write_parquet(path, features, made)
        found[str(path)] = count
    return found


def write_football(folder: Path, seed: int, rows: int) -> dict[str, int]:
    """People with balls, and a caption for each picture."""
    from datasets import Features, Image, Value

    features = Features(image=Image(), text=Value("string"))
    drawn = (compose(random.Random(f"football/{seed}/{i}"), TRAIN_LAYOUT, ("person", "ball")) for i in range(rows))
    path = folder / "train-00000-of-00001.parquet"
    _write_parquet(path, features, ({"image": _picture(s), "text": language.caption(s)} for s in drawn))
    return {str(path): rows}


def write_ocr_json(folder: Path, seed: int, rows: int) -> dict[str, int]:
    """Plates to read, as a JSON array of ``messages`` with ``<image>`` marks and paths beside them."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    ask = "Extract Vehicle Sr No, Engine No and Model. Answer in JSON only."
    entries = []
    for i in range(rows):
        rng = random.Random(f"ocr_json/{seed}/{i}")
        fields = plate_fields(rng)
        name = f"photos/plate_{i:04d}.jpg"
        (folder / name).write_bytes(jpeg(draw_plate(fields, rng)))
        messages = [
            {"role": "user", "content": f"<image>{ask}" if i % 3 else f"{ask}<image>"},
            {"role": "assistant", "content": json.dumps(fields)},
        ]
        if i % 4 == 0:
            messages += [
                {"role": "user", "content": "Which model is it?"},
                {"role": "assistant", "content": fields["Model"]},
            ]
        entries.append({"messages": messages, "images": [name]})
    path = folder / "plates.json"
    path.write_text(json.dumps(entries, indent=1) + "\n")
    return {str(path): rows}


def _stream(name: str, seed: int, count: int) -> Iterator[Scene]:
    return itertools.islice(scenes(f"sample/{name}", seed, TRAIN_LAYOUT), count)


def _picture(scene: Scene) -> dict[str, Any]:
    return {"bytes": jpeg(draw_scene(scene)), "path": None}


def _texts(config: str, pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"user": user, "assistant": assistant, "source": config} for user, assistant in pairs]


def _answers(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    asked = [(question.text, language.yes_no(question.truth)) for question in language.questions(scene, rng)]
    asked = rng.sample(asked, min(_QUESTIONS_A_ROW - 1, len(asked)))
    asked.append(rng.choice(language.open_questions(scene)))
    rng.shuffle(asked)
    return asked


def _which(first: Scene, second: Scene) -> list[tuple[str, str]]:
    only = [(kind, "the first picture") for kind in first.kinds if kind not in second.kinds]
    only += [(kind, "the second picture") for kind in second.kinds if kind not in first.kinds]
    only += [(kind, "both pictures") for kind in first.kinds if kind in second.kinds]
    return [(f"Where is there a {kind}?", f"In {place}.") for kind, place in only]


def _preference(scene: Scene, rng: random.Random, *, describe: bool) -> tuple[str, str, str]:
    if describe:
        false, made_up = language.careless_caption(scene, rng)
        if made_up:
            return language.DESCRIBE, language.caption(scene), false
    asked = language.questions(scene, rng)
    question = rng.choice([q for q in asked if q.topic == "existence" and not q.truth] if rng.random() < 0.5 else asked)
    return question.text, language.yes_no(question.truth), language.yes_no(not question.truth)


def _write_parquet(path: Path, features: Any, rows: Iterator[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(rows, 100)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
