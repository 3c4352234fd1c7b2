"""The README.md of a run folder: what this adapter is, in the model card format of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmdata.licences import non_commercial

__all__ = ["card"]


def _licence(text: str) -> str:
    return f"{text} (**not for commercial use**)" if non_commercial(text) else text


def card(about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Markdown with a YAML head.

    Args:
        about: the content of ``vlmtrain.json``.
        metrics: the content of ``metrics.json``.
    """
    config, rows = about["config"], metrics["rows"]
    hub = f"base_model: {about['base']}\n" if about["base"].count("/") == 1 else ""
    head = f"---\nlibrary_name: peft\n{hub}tags:\n- vlmtrain\n- lora\n- {about['method']}\n---\n"
    method = {"sft": "supervised fine-tuning", "dpo": "direct preference optimization"}[about["method"]]
    start = f" on top of the adapter `{about['adapter']['name']}`" if about["adapter"] else ""
    figures = [
        ("Base model", f"`{about['base']}` ({about['family']})"),
        ("Data", ", ".join(f"{d['name']} ({d['rows']:,} rows of {d['source']})" for d in about["data"])),
        ("Data licence", ", ".join(dict.fromkeys(_licence(d["licence"]) for d in about["data"]))),
        ("Rows used", f"{rows['kept']:,} of {rows['read']:,}"),
        ("Trained parameters", f"{metrics['trainable_parameters']:,} of {metrics['parameters']:,}"),
        ("Steps", f"{metrics['steps']:,}"),
        ("Batch", f"{config['batch_size']} x {config['accumulate']}"),
        ("Learning rate", f"{config['learning_rate']:g}, {config['schedule']}"),
        ("Mean loss", f"{metrics['loss']:.4f}"),
        *((key.replace("_", " "), f"{value:.4f}") for key, value in metrics["eval"].items()),
        ("Time", f"{metrics['train_seconds']:,.0f} s on {metrics['device']}"),
        ("Speed", f"{metrics['tokens_per_second']:,.0f} tokens/s"),
        ("Peak memory", f"{metrics['peak_memory_bytes'] / 2**30:.2f} GiB"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in figures)
    use = "vlmtrain merge THIS_FOLDER --out MODEL    # a plain model folder, without peft"
    return (
        f"{head}\n# LoRA adapter\n\nTrained by {method}{start}.\n\n| | |\n|---|---|\n{table}\n\n"
        f"The resolved configuration is in `vlmtrain.json`, every logged step in `log.jsonl`.\n\n    {use}\n"
    )
