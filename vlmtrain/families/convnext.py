"""ConvNeXT and ConvNeXT V2: convolutions without attention, whose pointwise layers are linear ones.

Paper:   https://arxiv.org/abs/2201.03545
Weights: https://huggingface.co/facebook/convnext-tiny-224
"""

from __future__ import annotations

from vlmtrain.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    name="convnext",
    model_types=("convnext", "convnextv2"),
    url="https://arxiv.org/abs/2201.03545",
    summary="ConvNeXT, ConvNeXT V2: image classifiers without attention",
    targets={"vision": {"mlp": r".*\.layers\.\d+\.(pwconv1|pwconv2)"}},
    towers=("convnext.", "convnextv2."),
    chat_template="",
    auto_class="AutoModelForImageClassification",
    task="classify",
    head="classifier",
)
