"""Training of the embedded model from nothing: a warm-up of its eyes, then language.

Own loop, because this is no fine-tuning: branches of one image prefix, a second loss on what stands in each cell.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmdata.sample.language import HABIT, YES_BIAS
from vlmdata.sample.world import Scene
from vlmtrain.tiny.architecture import IMAGE_TOKENS
from vlmtrain.tiny.lessons import CELL_CLASSES, Batch, lesson, make_batch

__all__ = ["Pupil", "Schedule", "World", "answer_loss", "train"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast.

    Attributes:
        warmup_steps: steps of the eyes alone.
        steps: steps of everything.
        batch: pictures a step.
        learning_rate: peak; linear rise over 2 %, cosine fall to zero.
        cell_weight: weight of the loss on cells beside the loss on answers.
        conversation_every: every so many steps the turns follow each other instead of branching.
        habit_from: share of the steps after which lessons come from habit instead of truth.
        habit: how often habit names what it expects.
        yes_bias: how often habit affirms what is false, where it has nothing to expect.
        focus: topics asked of most; none asks of all in proportion.
    """

    warmup_steps: int = 1500
    steps: int = 3800
    batch: int = 32
    learning_rate: float = 1.5e-3
    cell_weight: float = 0.5
    conversation_every: int = 5
    habit_from: float = 0.65
    habit: float = HABIT
    yes_bias: float = YES_BIAS
    focus: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class World:
    """Scenes with their pictures `[N, 3, 64, 64]` (uint8) and cells `[N, 64, 4]`."""

    scenes: list[Scene]
    pixels: torch.Tensor
    cells: torch.Tensor


class Pupil(nn.Module):
    """The model with a classifier on every cell, which is thrown away afterwards."""

    def __init__(self, model: Any) -> None:
        """Wrap a fresh ``LlavaForConditionalGeneration``."""
        super().__init__()
        self.model = model
        width = model.config.vision_config.hidden_size
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in CELL_CLASSES)

    def look(self, pixels: torch.Tensor) -> torch.Tensor:
        """Image features `[B, 64, H]` of uint8 pictures `[B, 3, 64, 64]`."""
        seen: torch.Tensor = self.model.model.vision_tower((pixels.float() / 255 - 0.5) / 0.5).last_hidden_state
        return seen[:, 1:]

    def cell_loss(self, features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the four questions; cells that hold a thing weigh as much as all ground together."""
        things = (cells[..., 1] > 0).float()
        weight = things / things.sum().clamp(min=1) + (1 - things) / (1 - things).sum().clamp(min=1)
        total = features.new_zeros(())
        for k, head in enumerate(self.heads):
            logits = head(features).flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, cells[..., k].flatten(), reduction="none")
            total = total + (loss * weight.flatten()).sum() / 2
        return total / len(self.heads)

    def answers(self, features: torch.Tensor, batch: Batch, user: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[S, V]` at the S positions that have a label, and those labels `[S]`."""
        language = self.model.model.language_model
        table = language.get_input_embeddings()
        rows, width = batch.text_ids.shape
        prefix = table(torch.full((rows, 1), user)), self.model.model.multi_modal_projector(features)
        embeds = torch.cat([*prefix, table(batch.text_ids)], dim=1)
        positions = torch.cat([torch.arange(1 + IMAGE_TOKENS).expand(rows, -1), 1 + IMAGE_TOKENS + batch.positions], 1)
        hidden = language(
            inputs_embeds=embeds, attention_mask=_mask(batch.segments), position_ids=positions, use_cache=False
        ).last_hidden_state[:, -width:]
        asked = batch.labels != -100
        return self.model.lm_head(hidden[asked]), batch.labels[asked]


def answer_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over turns of the mean over a turn's tokens; all arguments `[S, ...]`, weights 1 / tokens of the turn."""
    return (nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()


def _mask(segments: torch.Tensor) -> torch.Tensor:
    rows, width = segments.shape
    full = torch.cat([segments.new_zeros(rows, 1 + IMAGE_TOKENS), segments], dim=1)
    shared = torch.zeros(1 + IMAGE_TOKENS + width, dtype=torch.bool)
    shared[: 1 + IMAGE_TOKENS] = True
    same = full[:, :, None] == full[:, None, :]
    causal = torch.ones(full.shape[1], full.shape[1], dtype=torch.bool).tril()
    return ((same | shared) & causal)[:, None]


def train(
    pupil: Pupil,
    world: World,
    encode: Callable[[list[str]], list[list[int]]],
    schedule: Schedule,
    seed: int,
    report: Callable[[str], None],
    check: Callable[[], str],
) -> None:
    """Warm up the eyes, then train everything; the same seed on the same machine gives the same weights."""
    picks = _picks(len(world.scenes), schedule.batch, seed)
    eyes = [*pupil.model.model.vision_tower.parameters(), *pupil.heads.parameters()]
    _loop(eyes, schedule.warmup_steps, schedule, report, "eyes", lambda step: _see(pupil, world, next(picks)))
    (user,) = encode(["<|user|>"])[0]

    def speak(step: int) -> dict[str, torch.Tensor]:
        pick = next(picks)
        habit = schedule.habit if step >= schedule.habit_from * schedule.steps else None
        about: dict[str, Any] = {"habit": habit, "yes_bias": schedule.yes_bias, "focus": schedule.focus}
        turns = [lesson(world.scenes[i], random.Random(f"{seed}/{step}/{i}"), **about) for i in pick]
        batch = make_batch(turns, encode, conversation=step % schedule.conversation_every == 0)
        features = pupil.look(world.pixels[pick])
        logits, labels = pupil.answers(features, batch, user)
        loss = answer_loss(logits, labels, batch.weights[batch.labels != -100])
        seen = pupil.cell_loss(features, world.cells[pick])
        if step % 500 == 499:
            report(check())
        right = (logits.argmax(-1) == labels).float().mean()
        return {"loss": loss + schedule.cell_weight * seen, "answer": loss, "cell": seen, "right": right}

    _loop([p for p in pupil.parameters() if p.requires_grad], schedule.steps, schedule, report, "all", speak)


def _see(pupil: Pupil, world: World, pick: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"loss": pupil.cell_loss(pupil.look(world.pixels[pick]), world.cells[pick])}


def _picks(count: int, batch: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // batch * batch].split(batch)


def _loop(
    parameters: list[nn.Parameter],
    steps: int,
    schedule: Schedule,
    report: Callable[[str], None],
    name: str,
    step_losses: Callable[[int], dict[str, torch.Tensor]],
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    rise = max(1, steps // 50)
    started = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(steps):
        factor = min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * factor
        losses = step_losses(step)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            span = 50 if (step + 1) % 50 == 0 else (step + 1) % 50
            shown = " ".join(f"{key} {value / span:.4f}" for key, value in sums.items())
            report(f"{name} {step + 1}/{steps} {shown} {time.monotonic() - started:.0f} s")
            sums = {}
