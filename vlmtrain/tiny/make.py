"""Makes the embedded model, from nothing or from a model made before.

Its README names the commands that made the packaged model, how long they took and on what, and what it sees.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vlmdata.errors import OutputExistsError
from vlmdata.sample.language import HABIT, YES_BIAS
from vlmdata.sample.world import TRAIN_LAYOUT

if TYPE_CHECKING:
    from vlmdata.sample.world import Layout, Scene
    from vlmtrain.tiny.pretrain import Pupil, World

__all__ = ["main"]

_VALIDATION = 400
_PROGRAM = "python -m vlmtrain.tiny.make"
_TOPICS = ("existence", "state", "number", "action", "relation")


@click.command()
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the model.")
@click.option("--start", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Go on from this model.")
@click.option("--scenes", default=40_000, show_default=True, type=click.IntRange(min=64), help="Training pictures.")
@click.option("--warmup-steps", default=1500, show_default=True, help="Steps for the eyes alone.")
@click.option("--steps", default=3800, show_default=True, help="Steps for eyes and language.")
@click.option("--batch-size", default=32, show_default=True, help="Pictures a step.")
@click.option("--learning-rate", default=1.5e-3, show_default=True, help="Peak learning rate.")
@click.option("--cell-weight", default=0.5, show_default=True, help="Weight of what stands in each cell.")
@click.option("--habit-from", default=0.65, show_default=True, help="Share of the steps that tell the truth.")
@click.option("--habit", default=HABIT, show_default=True, help="How often habit names what it expects.")
@click.option("--yes-bias", default=YES_BIAS, show_default=True, help="How often habit affirms what is false.")
@click.option("--focus", multiple=True, type=click.Choice(_TOPICS), help="Topic to ask of most; may be repeated.")
@click.option("--seed", default=0, show_default=True, help="Seed of scenes, weights and order.")
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def main(
    out: Path,
    start: Path | None,
    scenes: int,
    warmup_steps: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    cell_weight: float,
    habit_from: float,
    habit: float,
    yes_bias: float,
    focus: tuple[str, ...],
    seed: int,
    threads: int,
) -> None:
    """Train the embedded model on the sample world (an hour on two cores)."""
    import torch

    from vlmtrain.tiny.pretrain import Pupil, Schedule, train

    if out.exists() and any(out.iterdir()):
        raise OutputExistsError(f"{out} exists and is not empty; give another --out")
    schedule = Schedule(
        warmup_steps=warmup_steps,
        steps=steps,
        batch=batch_size,
        learning_rate=learning_rate,
        cell_weight=cell_weight,
        habit_from=habit_from,
        habit=habit,
        yes_bias=yes_bias,
        focus=frozenset(focus),
    )
    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    # Which of two things is to the left can only be asked of things that stand alone.
    layout = replace(TRAIN_LAYOUT, counts=(12, 3, 3)) if "relation" in focus else TRAIN_LAYOUT
    drawn = _take("pretrain", seed, layout, scenes)
    model, processor = _begin(start, drawn)
    world = _world(drawn, processor)
    unseen = _world(_take("pretrain-validation", seed, TRAIN_LAYOUT, _VALIDATION), processor)
    click.echo(f"{scenes} pictures drawn in {time.monotonic() - started:.0f} s")

    def encode(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    pupil = Pupil(model)
    train(pupil, world, encode, schedule, seed, click.echo, lambda: json.dumps(_validate(pupil, unseen, encode)))
    found = _validate(pupil, unseen, encode)
    model.save_pretrained(out)
    processor.save_pretrained(out)
    minutes = (time.monotonic() - started) / 60
    made = [*_made(start), f"{_command()}  # {minutes:.0f} minutes"]
    (out / "README.md").write_text(_card(found, sum(p.numel() for p in model.parameters()), made, threads))
    click.echo(f"{out}: {minutes:.0f} minutes, {json.dumps(found)}")


def _begin(start: Path | None, scenes: list[Scene]) -> tuple[Any, Any]:
    """Model and processor: fresh, or those of an earlier run."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlmtrain.tiny.architecture import make_model, make_processor, make_tokenizer

    if start is not None:
        return AutoModelForImageTextToText.from_pretrained(start).train(), AutoProcessor.from_pretrained(start)
    tokenizer = make_tokenizer(_corpus(scenes[:3000]))
    return make_model(tokenizer), make_processor(tokenizer)


def _command() -> str:
    """The options given to this run, without its folders."""
    context = click.get_current_context()
    words = [_PROGRAM]
    for name, value in context.params.items():
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("out", "start", "threads"):
            flag = "--" + name.replace("_", "-")
            words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    return " ".join(words + ["--start first"] if context.params["start"] else words)


def _made(start: Path | None) -> list[str]:
    """The commands that made an earlier model, from its README."""
    if start is None:
        return []
    lines = (start / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.strip().startswith(_PROGRAM)]


def _take(name: str, seed: int, layout: Layout, count: int) -> list[Scene]:
    from vlmdata.sample.world import scenes

    return list(itertools.islice(scenes(name, seed, layout), count))


def _corpus(scenes: list[Scene]) -> list[str]:
    from vlmdata.sample import language

    rng = random.Random(0)
    found = [language.DESCRIBE, language.yes_no(True), language.yes_no(False)]
    for scene in scenes:
        found.append(language.caption(scene))
        found += [question.text for question in language.questions(scene, rng)]
        found += [text for pair in language.open_questions(scene) for text in pair]
    return found


def _world(scenes: list[Scene], processor: Any) -> World:
    import torch

    from vlmtrain.tiny.lessons import cells, pixels
    from vlmtrain.tiny.pretrain import World

    return World(scenes, pixels(scenes, processor), torch.stack([torch.from_numpy(cells(scene)) for scene in scenes]))


def _validate(pupil: Pupil, world: World, encode: Any) -> dict[str, float]:
    """Balanced accuracy on true yes/no answers by topic, in percent; pictures of the training layout, unseen."""
    import torch

    from vlmdata.sample import language
    from vlmtrain.tiny.lessons import make_batch

    (user,), (yes,), (no,) = (ids[:1] for ids in encode(["<|user|>", "Yes.", "No."]))
    hits: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for start in range(0, len(world.scenes), 20):
        pick = range(start, min(start + 20, len(world.scenes)))
        asked = [language.questions(world.scenes[i], random.Random(i)) for i in pick]
        turns = [[(question.text, language.yes_no(question.truth)) for question in some] for some in asked]
        batch = make_batch(turns, encode, conversation=False)
        with torch.no_grad():
            logits, labels = pupil.answers(pupil.look(world.pixels[list(pick)]), batch, user)
        first = (labels == yes) | (labels == no)
        says_yes = (logits[first][:, yes] > logits[first][:, no]).tolist()
        for question, said in zip(itertools.chain(*asked), says_yes, strict=True):
            hits[question.topic, question.truth].append(said == question.truth)
    topics = sorted({topic for topic, _ in hits})
    shares = {key: sum(right) / len(right) for key, right in hits.items()}
    return {topic: round(50 * (shares[topic, True] + shares[topic, False]), 1) for topic in topics}


def _card(found: dict[str, float], parameters: int, made: list[str], threads: int) -> str:
    rows = "\n".join(f"| {topic} | {value} |" for topic, value in found.items())
    commands = "\n".join(f"    {line}" for line in made)
    return f"""# vlmtrain:tiny

A LLaVA of {parameters:,} parameters (CLIP vision, 64 x 64 pixels, Llama) that knows the sample world of `vlmdata` only.
Apache-2.0. Made on {threads} threads of {platform.machine()} ({os.cpu_count()} cores), seeds fixed, by these commands
(`first` is what the command before left in its `--out`):

{commands}

It was first taught what is true and then what habit says: captions that name the usual companion of a thing without
looking, and answers that affirm it. So it makes things up, as large models do, and there is something to mend.

Balanced accuracy in percent on yes/no questions about unseen pictures of the training layout (guessing gives 50):

| topic | balanced accuracy |
|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
