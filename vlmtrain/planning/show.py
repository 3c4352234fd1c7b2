"""A plan as tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vlmtrain.plan import Plan
from vlmtrain.planning.advice import CARDS, needed, usable

if TYPE_CHECKING:
    from vlmtrain.planning.visual import Visual

__all__ = ["show"]

_NOTES = {
    "weights": "the base, {base:,} parameters{bits}",
    "adapter": "{trained:,} trained parameters",
    "reference": "{reference}",
    "gradients": "of {trained:,} trained parameters",
    "optimizer": "{optimizer}",
    "activations": "what the backward needs{checkpointing}",
    "logits": "the LM head, {head}",
    "images": "pixels and what the vision tower makes of them",
}


def show(plan: Plan, console: Console) -> None:
    """Print all of it."""
    console.print(_title(plan), highlight=False)
    console.print(_memory(plan))
    if plan.visual is not None:
        _data(plan.visual, plan.config.method, console)
    if plan.cards:
        console.print(_cards(plan))
        console.print(_knobs(plan))
        console.print(
            "Cards are an L4, L40S and H100, less 0.6 GB for the CUDA context and 5 % for\n"
            "fragments. Longer rows and larger images take more. 1 GB is 1e9 bytes.",
            style="dim",
            highlight=False,
        )


def _title(plan: Plan) -> str:
    config, load = plan.config, plan.load
    t = config.training
    what = f"{config.method}, {config.lora.tuner}" + (f" r={config.lora.lora_r}" if config.lora.tuner != "full" else "")
    unit = {"dpo": "pairs", "classify": "images"}.get(config.method, "rows")
    batch = f"batch of {t.batch_size} {unit} x {t.accumulate}"
    if plan.rule_of_thumb:
        return f"{plan.model}: {what}, parameters times bytes alone"
    row = f"{load.images} images of {load.size[0]}x{load.size[1]} and {load.length:,} tokens a row"
    if config.method == "classify":
        row = "one image a row"
    elif load.rows is not None:
        row = f"the largest rows of the data, {load.length:,} tokens"
    return f"{plan.model}: {what}, {batch}, {row}".replace("1 images", "1 image")


def _memory(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("GB", justify="right")
    table.add_column("")
    facts = _facts(plan)
    for name, size in plan.memory.items.items():
        if plan.rule_of_thumb and not size:
            continue
        note = _NOTES[name].format(**facts)
        later = plan.memory.most.get(name, 0)
        if size < 5e6 <= later and later > 20 * size:
            note += f"; up to {later / 1e9:.2f} at another moment"
        if name == "reference" and not size:
            table.add_row(name, "0", note)
        else:
            table.add_row(name, f"{size / 1e9:.2f}", note)
    when = "" if plan.rule_of_thumb else f"at the largest moment, {plan.memory.phase}"
    table.add_row("[bold]together[/]", f"[bold]{plan.memory.peak / 1e9:.2f}[/]", when)
    return table


def _facts(plan: Plan) -> dict[str, Any]:
    config, memory = plan.config, plan.memory
    reference = "none is kept"
    if config.method in ("dpo", "kto"):
        group = config.preference or config.unpaired
        assert group is not None
        peft = "the adapter is switched off for it" if config.lora.tuner != "full" else "it stays beside the model"
        before = "its log-probabilities are computed before"
        reference = "a second model" if memory.items["reference"] else before if group.reference != "live" else peft
    if plan.rule_of_thumb and memory.items["reference"]:
        reference = "a second model, which peft makes needless"
    quantize, parts = config.base.quantize, " and ".join(config.base.quantize_parts)
    return {
        "base": memory.base,
        "trained": memory.trained,
        "bits": "" if quantize == "none" or plan.rule_of_thumb else f", {parts} in {quantize}",
        "reference": reference,
        "optimizer": "AdamW's two averages" if plan.rule_of_thumb else config.training.optimizer,
        "checkpointing": f", {memory.recomputed} layers recomputed" if memory.recomputed else ", all kept",
        "head": "answers only" if plan.device == "cuda" or config.training.compact_head else "every position",
    }


def _cards(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("\ncard")
    table.add_column("\nfits")
    table.add_column("\nwhat to turn")
    table.add_column("\nGB", justify="right")
    for card in plan.cards:
        after = f"{card.after / 1e9:.1f}"
        if card.fits:
            faster = f"faster: {card.faster}, {card.faster_peak / 1e9:.1f} GB" if card.faster else ""
            table.add_row(f"{card.size} GB", "yes", faster, f"{plan.memory.peak / 1e9:.1f}")
        elif card.knobs:
            table.add_row(f"{card.size} GB", "no", "  ".join(card.knobs), after)
        else:
            room = usable(card.size) / 1e9
            table.add_row(f"{card.size} GB", "no", f"nothing here: it has {room:.1f}, with all turned it takes", after)
    return table


def _knobs(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("\none knob alone")
    table.add_column("\nGB", justify="right")
    table.add_column("\nsaves", justify="right")
    table.add_column("\nfits on", justify="right")
    for knob in plan.knobs:
        saved = plan.memory.peak - knob.peak
        cards = [f"{card} GB" for card in sorted(CARDS) if needed(knob.peak) <= usable(card)]
        table.add_row(knob.text, f"{knob.peak / 1e9:.1f}", f"{saved / 1e9:.1f}", cards[0] if cards else "none")
    return table


def _data(visual: Visual, method: str, console: Console) -> None:
    exact = "" if visual.exact else "; text guessed at 4 bytes a token"
    lost = f", {visual.unreadable:,} of them cannot be read" if visual.unreadable else ""
    console.print(f"\n{visual.rows:,} rows{lost}, {visual.images:,} images{exact}", highlight=False)
    names = {"image": "tokens of an image", "row": "of a row's images", "text": "of a row's text"}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for share in next(iter(visual.percentiles.values())):
        table.add_column("most" if share == 100 else f"{share} %", justify="right")
    for name, at in visual.percentiles.items():
        table.add_row(names[name], *(f"{value:,}" for value in at.values()))
    console.print(table)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("\n--max-image-tokens", "image\ntokens", "all\ntokens", "\nsaves", "longest\nrow"):
        table.add_column(title, justify="left" if title.startswith("\n--") else "right")
    limit = f"over\n{visual.limit:,}" if visual.limit else "too\nlong"
    table.add_column(limit, justify="right")
    whole = visual.budgets[0].tokens
    for budget in visual.budgets:
        table.add_row(
            "as it is" if budget is visual.budgets[0] else f"{budget.most:,}",
            f"{budget.image_tokens:,}",
            f"{budget.tokens:,}",
            f"{1 - budget.tokens / max(1, whole):.0%}",
            f"{budget.longest:,}",
            f"{budget.too_long:,}",
        )
    console.print(table)
    for line in _repeats(visual, method):
        console.print(line, highlight=False)
    if visual.fixed and visual.images:
        console.print("Every image of this model takes the same: there is no smaller budget.", highlight=False)


def _repeats(visual: Visual, method: str) -> Iterator[str]:
    """What is not computed twice, and what keeping it takes."""
    found = visual.repeats
    if found.features:
        size = f"{found.features / 1e9:,.1f} GB" if found.features > 5e8 else f"{found.features / 1e6:.1f} MB"
        yield f"\n--cache-vision keeps what the tower makes of {found.images:,} images: at most {size}"
    if found.shared and method in ("sft", "dpo"):
        # Of pairs a row's tokens are those of the longer answer: there is no share of all to tell.
        saves = f"saves up to {found.shared / max(1, visual.budgets[0].tokens):.0%} of all tokens"
        saves = saves if method == "sft" else f"reads up to {found.shared:,} image tokens less"
        yield f"{found.rows:,} rows on {found.groups:,} images: --group-by-image {saves}"
