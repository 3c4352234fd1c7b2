"""Swin Transformer V2: windows of attention; its layers still have the names of older versions of transformers.

Paper:   https://arxiv.org/abs/2111.09883
Weights: https://huggingface.co/microsoft/swinv2-tiny-patch4-window8-256
"""

from __future__ import annotations

from vlmtrain.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    name="swinv2",
    model_types=("swinv2",),
    url="https://arxiv.org/abs/2111.09883",
    summary="Swin Transformer V2: image classifier",
    targets={
        "vision": {
            "attention": r".*\.attention\.(self\.(query|key|value)|output\.dense)",
            "mlp": r".*\.blocks\.\d+\.(intermediate|output)\.dense",
        },
    },
    towers=("swinv2.",),
    chat_template="",
    auto_class="AutoModelForImageClassification",
    task="classify",
    head="classifier",
)
