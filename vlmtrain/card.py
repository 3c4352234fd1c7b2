"""The README.md of a run folder and of a merged model: what it is, in the model card format of the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlmdata.licences import non_commercial

__all__ = ["card", "merged_card"]

_METHODS = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization",
    "kto": "Kahneman-Tversky optimization",
    "classify": "image classification",
}
_TUNERS = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "adalora": "AdaLoRA"}


def card(about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Markdown with a YAML head.

    Args:
        about: the content of ``vlmtrain.json``.
        metrics: the content of ``metrics.json``.
    """
    tuner = about["config"].get("tuner", "lora")
    full = tuner == "full"
    head = _head(about, "transformers" if full else "peft", "full" if full else tuner)
    start = f" on top of the adapter `{about['adapter']['name']}`" if about["adapter"] else ""
    title = "Fine-tuned model" if full else f"{_TUNERS.get(tuner, tuner)} adapter"
    use = (
        "vlmeval amber --model THIS_FOLDER ...      # or any program that loads transformers models"
        if full
        else "vlmtrain merge THIS_FOLDER --out MODEL    # a plain model folder, without peft"
    )
    return (
        f"{head}\n# {title}\n\nTrained by {_METHODS[about['method']]}{start}.\n\n"
        f"{_table([*_origin(about), *_training(about), *_outcome(metrics)])}\n"
        f"The resolved configuration is in `vlmtrain.json`, every logged step in `log.jsonl`.\n\n    {use}\n"
    )


def merged_card(about: Mapping[str, Any], metrics: Mapping[str, Any], dtype: str) -> str:
    """The card of a model with its adapter merged in.

    Args:
        about: the content of the run's ``vlmtrain.json``; base and family at least, for an adapter made elsewhere.
        metrics: the content of its ``metrics.json``; empty for such an adapter.
        dtype: type of the weights.
    """
    lines = [*_origin(about), ("Weights", dtype)]
    lines += [*_training(about), *_outcome(metrics)] if metrics else []
    how = (
        f"Trained by {_METHODS[about['method']]}, then merged: it" if "method" in about else "An adapter merged in: it"
    )
    head = _head(about, "transformers", "merged")
    return f"{head}\n# Merged model\n\n{how} loads without peft.\n\n{_table(lines)}"


def _head(about: Mapping[str, Any], library: str, kind: str) -> str:
    base = f"base_model: {about['base']}\n" if about["base"].count("/") == 1 else ""
    task = "image-classification" if about.get("method") == "classify" else "image-text-to-text"
    tags = "\n".join(f"- {tag}" for tag in ("vlmtrain", kind, *([about["method"]] if "method" in about else [])))
    return f"---\nlibrary_name: {library}\n{base}pipeline_tag: {task}\ntags:\n{tags}\n---\n"


def _origin(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Base model", f"`{about['base']}` ({about['family']})"
    data = about.get("data", ())
    if data:
        yield "Data", ", ".join(f"{d['name']} ({d['rows']:,} rows of {d['source']})" for d in data)
        yield "Data licence", ", ".join(dict.fromkeys(_licence(d["licence"]) or "not stated" for d in data))


def _training(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    config = about["config"]
    if config.get("recipe"):
        yield "Recipe", f"`{config['recipe']}`"
    tuner = config.get("tuner", "lora")
    targets = config.get("target_modules") or ()
    where = targets if isinstance(targets, str) else ", ".join(targets) or config.get("parts")
    if tuner == "full":
        yield "Trained", f"the model itself: `{where}`"
    else:
        rank = f"r {config['lora_r']}, alpha {config['lora_alpha']:g}"
        first = f" from {config['init']}" if config.get("init", "default") != "default" else ""
        last = f", last blocks: {config['lora_last_layers']}" if config.get("lora_last_layers") else ""
        yield "Adapter", f"{_TUNERS.get(tuner, tuner)}{first}, {rank}: `{where}`{last}"
    if config.get("quantize", "none") != "none":
        yield "Base in training", config["quantize"]
    yield "Batch", f"{config['batch_size']} x {config['accumulate']}"
    yield "Learning rate", f"{config['learning_rate']:g}, {config['schedule']}"


def _outcome(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rows = metrics["rows"]
    yield "Rows used", f"{rows['kept']:,} of {rows['read']:,}"
    yield "Trained parameters", f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,}"
    yield "Steps", f"{metrics['steps']:,}"
    yield "Mean loss", f"{metrics['loss']:.4f}"
    for key, value in metrics["eval"].items():
        yield key.replace("_", " "), f"{value:.4f}"
    yield "Time", f"{metrics['train_seconds']:,.0f} s on {metrics['device']}"
    for key in metrics:
        if key.endswith("s_per_second"):
            yield "Speed", f"{metrics[key]:,.0f} {key.partition('_')[0]}/s"
    yield "Peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"


def _table(lines: list[tuple[str, str]]) -> str:
    # A regular expression's bars would end the cell.
    rows = "\n".join(f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in lines)
    return f"| | |\n|---|---|\n{rows}\n"


def _licence(text: str) -> str:
    return f"{text} (**not for commercial use**)" if non_commercial(text) else text
