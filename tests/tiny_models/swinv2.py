from __future__ import annotations

import transformers as tf

NAMES = ("swinv2",)


def make(kind: str = "swinv2"):
    shape = {"image_size": 28, "patch_size": 7, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
    config = tf.AutoConfig.for_model(kind, **shape, window_size=2)
    return tf.AutoModelForImageClassification.from_config(config), tf.ViTImageProcessor(
        size={"height": 28, "width": 28}
    )
