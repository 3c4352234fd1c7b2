"""ViT and the image classifiers that name their layers alike: DeiT, BEiT, DINOv2, Swin.

Paper:   https://arxiv.org/abs/2010.11929
Weights: https://huggingface.co/google/vit-base-patch16-224-in21k

Since version 5 of transformers they agree on ``attention.{q,k,v,o}_proj`` and ``mlp.{fc1,fc2}``; the ``query`` and
``value`` of recipes written before that are today's ``q_proj`` and ``v_proj``.
"""

from __future__ import annotations

from vlmtrain.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    name="vit",
    model_types=("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "swin"),
    url="https://arxiv.org/abs/2010.11929",
    summary="ViT, DeiT, BEiT, DINOv2, Swin: image classifiers",
    targets={
        "vision": {
            "attention": r".*\.attention\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r".*\.mlp\.(fc1|fc2|weights_in|weights_out)",
        },
    },
    towers=("vit.", "deit.", "beit.", "dinov2.", "dinov2_with_registers.", "swin."),
    casts_pixels=True,
    chat_template="",
    auto_class="AutoModelForImageClassification",
    renames=(
        (r"(^|\.)query$", r"\1q_proj"),
        (r"(^|\.)key$", r"\1k_proj"),
        (r"(^|\.)value$", r"\1v_proj"),
        (r"attention\.output\.dense$", "attention.o_proj"),
        (r"intermediate\.dense$", "mlp.fc1"),
        (r"(^|\.)output\.dense$", r"\1mlp.fc2"),
    ),
    task="classify",
    head="classifier",
)
