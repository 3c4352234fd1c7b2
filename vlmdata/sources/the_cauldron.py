"""The Cauldron: 50 vision-language data sets in one form.

Link: https://huggingface.co/datasets/HuggingFaceM4/the_cauldron (Laurençon et al. 2024, arXiv:2405.02246).
Licence: each of the 50 sets keeps its own; the prompts are CC-BY-4.0.

Raw row::

    {"images": [{"bytes": ..., "path": null}, ...],
     "texts": [{"user": "How many ships?", "assistant": "Two.", "source": "..."}, ...]}

Record: one conversation of ALL pairs about ALL images, the images in the first user turn; with ``turns="split"``
one record for each pair, every one with all images.

Rejected: a pair without question (later than the images' turn) or without answer, a row without pairs, an image
that is a path without bytes (``okvqa`` has such rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.errors import RecordError
from vlmdata.fields import images_value, printable, text_value
from vlmdata.records import Image, Message, Record, Sample, image, text
from vlmdata.source import Options, Row, Source

__all__ = ["SOURCE", "convert"]

_CONFIGS = (
    "ai2d aokvqa chart2text chartqa clevr clevr_math cocoqa datikz diagram_image_to_text docvqa dvqa figureqa finqa "
    "geomverse hateful_memes hitab iam iconqa infographic_vqa intergps localized_narratives mapqa mimic_cgd "
    "multihiertt nlvr2 ocrvqa okvqa plotqa raven rendered_text robut_sqa robut_wikisql robut_wtq scienceqa "
    "screen2words spot_the_diff st_vqa tabmwp tallyqa tat_qa textcaps textvqa tqa vistext visual7w visualmrc vqarad "
    "vqav2 vsr websight"
)


# Rows of each set as its dataset viewer shows them.
_ROWS = (
    "2,434 16,539 26,963 18.3k 70k 70k 46.3k 48k 300 10.2k 200k 100k 5,276 9,303 8.5k 2.5k 5.66k 27.3k 2.12k 1.28k "
    "200k 37.4k 70.9k 7.62k 50.4k 166k 9.01k 157k 42k 10k 8.51k 75k 38.2k 4.98k 15.7k 8.57k 17.2k 22.7k 98.7k 2.2k "
    "22k 22k 1.49k 9.97k 14.4k 3.03k 313 82.8k 2.16k 10k"
)


def convert(row: Row, row_id: str, options: Options) -> list[Record]:
    """One conversation, or one record for each question/answer pair."""
    images = images_value(row.get("images"))
    pairs = row.get("texts")
    if not isinstance(pairs, Sequence) or isinstance(pairs, str | bytes):
        raise RecordError("wrong_fields", f"texts is {type(pairs).__name__}, expected a list of user/assistant pairs")
    if not pairs:
        raise RecordError("no_messages", "texts is empty")
    if options.turns == "split":
        return [_sample(images, [pair], f"{row_id}#{turn}", options) for turn, pair in enumerate(pairs)]
    return [_sample(images, pairs, row_id, options)]


def _sample(images: tuple[Image, ...], pairs: Sequence[Any], record_id: str, options: Options) -> Sample:
    messages: list[Message] = []
    origins: list[str] = []
    for turn, pair in enumerate(pairs):
        if not isinstance(pair, Mapping):
            raise RecordError("wrong_fields", f"texts[{turn}] is {type(pair).__name__}, expected an object")
        question = text_value(pair, "user")
        words = (text(question),) if question.strip() else ()
        places = tuple(image() for _ in images) if turn == 0 else ()
        content = places + words if options.image_position == "first" else words + places
        messages += [Message("user", content), Message("assistant", (text(text_value(pair, "assistant")),))]
        origin = printable(text_value(pair, "source"))
        if origin and origin not in origins:
            origins.append(origin)
    meta = {"config": options.config, "origin": origins}
    return Sample(record_id, images, tuple(messages), "the_cauldron", meta={k: v for k, v in meta.items() if v})


SOURCE = Source(
    kind="messages",
    columns=(frozenset({"images", "texts"}),),
    convert=convert,
    url="https://huggingface.co/datasets/HuggingFaceM4/the_cauldron",
    hub_id="HuggingFaceM4/the_cauldron",
    licence="each set its own; prompts CC-BY-4.0",
    summary="50 question/answer sets, several turns and images a row",
    configs=tuple(_CONFIGS.split()),
    config_rows=dict(zip(_CONFIGS.split(), _ROWS.split(), strict=True)),
    splits_turns=True,
)
