"""CLIP and SigLIP towers with a head for classes on their mean; the text towers are not used.

Papers:  https://arxiv.org/abs/2103.00020, https://arxiv.org/abs/2303.15343
Weights: https://huggingface.co/openai/clip-vit-base-patch32, https://huggingface.co/google/siglip2-base-patch16-224
"""

from __future__ import annotations

from vlmtrain.family import Family

__all__ = ["FAMILY"]

FAMILY = Family(
    name="clip",
    model_types=("clip", "siglip"),
    url="https://arxiv.org/abs/2103.00020",
    summary="CLIP, SigLIP: image towers as classifiers",
    targets={
        "vision": {
            "attention": r"(.*\.)?encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)",
            "mlp": r"(.*\.)?encoder\.layers\.\d+\.mlp\.(fc1|fc2)",
        },
    },
    towers=("vision_model.",),
    casts_pixels=True,
    chat_template="",
    auto_class="AutoModelForImageClassification",
    task="classify",
    head="classifier",
)
