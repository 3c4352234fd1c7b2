"""Yes/no questions on images, as AMBER asks them: ``python -m benchmarks.ask``.

A random LLaVA-like model with 576 image tokens (``benchmarks.llava_576``), float32, 14 questions on each image, each of
25 tokens with what the template writes after the image. A run is a process of its own; its time is from the first
question to the last answer, images opened and processed, model and libraries loaded before. Ways take turns, ratios are
of the CPU time of runs that follow each other, medians are shown. The answers of a kind must be the same: it ends with
an error where they are not.

- ``logits``, ``generate``: vlmeval as its commands run it, by first-token probabilities or in words.
- ``batched``: ``processor`` and ``generate`` of transformers, 8 prompts a call.
- ``single``: the same, one prompt a call.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.counting import count
from benchmarks.llava_576 import SIDE, make_model
from benchmarks.rows import noise

__all__ = ["WAYS", "main", "ours", "theirs", "write_images"]

WAYS = ("logits", "generate", "batched", "single")
OTHERS = {"batched": 8, "single": 1}
BATCH = 8
# Name of the picture, question.
Asked = tuple[str, str]


def main() -> None:
    """Make model and images, let the ways take turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each way")
    parser.add_argument("--pictures", type=int, default=4, help="images")
    parser.add_argument("--questions", type=int, default=14, help="on each image")
    parser.add_argument("--tokens", type=int, default=3, help="most new ones of an answer in words")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images in pixels; 14 x 14 pixels are a token")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--work", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        way, folder = given.work
        print(json.dumps(_work(way, Path(folder), given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "model", side=given.side)
        write_images(Path(folder), given.pictures, given.side)
        found = _take_turns(Path(folder), given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    _table(found)


def write_images(folder: Path, images: int, side: int) -> None:
    """Pictures of noise, ``0.png`` and so on."""
    for number in range(images):
        noise(number, side).save(folder / f"{number}.png", compress_level=1)


def _take_turns(folder: Path, given: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    options = ("pictures", "questions", "tokens", "threads")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for run in range(given.runs):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.ask", "--work", way, str(folder)]
            command += [word for name in options for word in (f"--{name}", str(getattr(given, name)))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stderr}")
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{way}, run {run + 1}: {found[way][-1]['seconds']:.2f} s", file=sys.stderr)
        _same(found, run)
    return found


def _same(found: dict[str, list[dict[str, Any]]], run: int) -> None:
    """End where ways do not agree: in words, and in the first token's probabilities."""
    ours, plain = found["generate"][run], found["single"][run]
    for way in ("generate", "batched"):
        if found[way][run]["words"] != plain["words"]:
            sys.exit(f"{way} answers otherwise than one call a question")
    for way in ("logits", "batched"):
        differ = max(abs(a - b) for a, b in zip(found[way][run]["yes"], plain["yes"], strict=True))
        if differ > 1e-5:
            sys.exit(f"{way}: a first-token probability differs by {differ:.1e} from one call a question")
    if len(ours["words"]) != len(plain["yes"]):
        sys.exit("not every question has an answer")


def _table(found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(found['single'][0]['yes'])} questions: medians of {len(found['single'])} runs")
    for column in ("way", "s", "CPU s", "single / way", "batched / way", "peak MB", "images read", "LM tokens"):
        table.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for way, runs in found.items():
        seconds, processor, peak = (
            statistics.median(run[name] for run in runs) for name in ("seconds", "cpu_seconds", "peak_megabytes")
        )
        ratios = [f"{_ratio(found, way, other):.1f}x" for other in ("single", "batched")]
        counts = (f"{runs[0][name]:,}" for name in ("tower_images", "lm_tokens"))
        table.add_row(way, f"{seconds:.2f}", f"{processor:.2f}", *ratios, f"{peak:.0f}", *counts)
    Console(width=110).print(table)


def _ratio(found: dict[str, list[dict[str, Any]]], way: str, other: str) -> float:
    """Of CPU time: others on the machine take turns with a process, and shorter ones wait for a larger part."""
    pairs = zip(found[way], found[other], strict=True)
    return statistics.median(theirs["cpu_seconds"] / ours["cpu_seconds"] for ours, theirs in pairs)


def _work(way: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(given.threads)
    asked = [
        (f"{image}.png", f"Is there {number:02}?")
        for image in range(given.pictures)
        for number in range(given.questions)
    ]
    if way in OTHERS:
        model, answer = theirs(folder / "model", folder, given.tokens, size=OTHERS[way])
    else:
        model, answer = ours(folder / "model", folder, given.tokens, way=way)
    counts = count(model)
    started, worked = time.monotonic(), time.process_time()
    answers = answer(asked)
    del answers["gaps"]
    seconds, processor = time.monotonic() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu_seconds": processor, "peak_megabytes": peak, **counts, **answers}


def ours(
    model: Path, images: Path, tokens: int, *, way: str, device: str = "cpu"
) -> tuple[Any, Callable[[list[Asked]], dict[str, Any]]]:
    """The model as vlmeval has it, and what answers questions with it.

    Args:
        model: its folder.
        images: folder of the pictures.
        tokens: most new ones of an answer in words.
        way: ``logits`` or ``generate``.
        device: to run on.

    Returns:
        The model, and a function from questions to ``words`` or, of ``logits``, ``yes`` and ``no``, the probabilities
        of these words; one of each question. ``gaps`` is empty.
    """
    import vlmtrain.lean.folded
    import vlmtrain.questions  # noqa: F401
    from vlmeval.models.local import Local
    from vlmeval.task import Item

    limits = {"text": tokens, "answer": tokens}
    local = Local(str(model), None, images=images, batch_size=BATCH, max_new_tokens=limits, answers=way, device=device)
    local.load()
    assert local.loaded is not None

    def answer(asked: list[Asked]) -> dict[str, Any]:
        items = [
            Item(place, text, (image,), "Yes", ("all",), choices=("Yes", "No"))
            for place, (image, text) in enumerate(asked)
        ]
        found = {said.id: said for batch in local.answer(items) for said in batch}
        ordered = [found[item.id] for item in items]
        if way == "generate":
            return {"words": [said.text for said in ordered], "yes": [], "no": [], "gaps": []}
        shares = [said.detail["probabilities"] for said in ordered]
        yes, no = ([share[word] for share in shares] for word in ("Yes", "No"))
        return {"words": [], "yes": yes, "no": no, "gaps": []}

    return local.loaded.model, answer


def theirs(
    model: Path, images: Path, tokens: int, *, size: int, nested: bool = False, device: str = "cpu"
) -> tuple[Any, Callable[[list[Asked]], dict[str, Any]]]:
    """The model and processor of transformers, and what answers questions with them.

    Args:
        model: its folder.
        images: folder of the pictures.
        tokens: most new ones of an answer.
        size: prompts of a call.
        nested: the processor wants a list of pictures for each prompt.
        device: to run on.

    Returns:
        As :func:`ours`; ``gaps`` of each question: the smallest lead, in logits, of a token it chose over the next.
    """
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlmeval.models.first_token import probabilities, spellings

    net = AutoModelForImageTextToText.from_pretrained(model).to(device)
    processor = AutoProcessor.from_pretrained(model)
    tokenizer = processor.tokenizer
    trained = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]
    begin = spellings(tokenizer, ("Yes", "No"), trained)

    def encode(part: list[Asked]) -> Any:
        chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for _, text in part]
        pictures = [Image.open(images / image).convert("RGB") for image, _ in part]
        return processor(
            text=[processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats],
            images=[[picture] for picture in pictures] if nested else pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=False,
        ).to(device, net.dtype)

    def answer(asked: list[Asked]) -> dict[str, Any]:
        answers: dict[str, Any] = {"words": [], "yes": [], "no": [], "gaps": []}
        for start in range(0, len(asked), size):
            inputs = encode(asked[start : start + size])
            with torch.inference_mode():
                found = net.generate(
                    **inputs, do_sample=False, max_new_tokens=tokens, output_logits=True, return_dict_in_generate=True
                )
            new = found.sequences[:, inputs["input_ids"].shape[1] :]
            answers["words"] += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
            for yes, no in probabilities(found.logits[0], begin):
                answers["yes"].append(yes)
                answers["no"].append(no)
            first, second = torch.stack(found.logits).topk(2).values.unbind(-1)
            answers["gaps"] += (first - second).min(0).values.tolist()
        return answers

    return net, answer


if __name__ == "__main__":
    main()
