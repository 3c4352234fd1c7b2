"""Axolotl: chat rows whose image parts bring their path, images as files, and a config.

Format: https://docs.axolotl.ai/docs/multimodal.html

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "images/3f/3f....jpg"},
                                               {"type": "text", "text": "Who?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "A bird."}]}], "vlmdata": "{...}"}

Each image stands in its own part: from a column of images the tool uses the first only. No other field has "image" in
its name, since the tool takes such for columns of images. Every order of parts and turns is kept. No preferences: the
documentation describes none with images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmdata.target import EXTRA, Exported, Row, Target, extras

__all__ = ["TARGET"]


def _row(row: Row, images: Sequence[str], escape: bool) -> dict[str, Any]:
    paths = iter(images)
    messages = [
        {
            "role": turn["role"],
            "content": [
                {"type": "image", "path": next(paths)}
                if part["type"] == "image"
                else {"type": "text", "text": part["text"]}
                for part in turn["content"]
            ],
        }
        for turn in row["messages"]
    ]
    return {"messages": messages, EXTRA: extras(row)}


def _files(exported: Exported) -> Mapping[str, str]:
    return {
        "axolotl.yaml": f"""\
base_model: Qwen/Qwen2-VL-2B-Instruct
processor_type: AutoProcessor
chat_template: qwen2_vl

datasets:
  - path: {exported.files[0].name}
    ds_type: json
    type: chat_template
    field_messages: messages

# Images need these three.
skip_prepare_dataset: true
remove_unused_columns: false
sample_packing: false

adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_modules: 'model.language_model.layers.[\\d]+.(mlp|cross_attn|self_attn).(up|down|gate|q|k|v|o)_proj'

sequence_len: 8192
micro_batch_size: 1
gradient_accumulation_steps: 8
num_epochs: 1
optimizer: adamw_torch_fused
learning_rate: 0.0001
bf16: auto
output_dir: output
"""
    }


def _usage(exported: Exported) -> str:
    return """\
In this folder, since image paths start from where it runs:

    axolotl train axolotl.yaml"""


TARGET = Target(
    container="jsonl",
    kinds=frozenset({"messages"}),
    summary="JSON Lines with images in their parts, image files, axolotl.yaml",
    url="https://docs.axolotl.ai/docs/multimodal.html",
    usage=_usage,
    row=_row,
    files=_files,
    extra=True,
)
