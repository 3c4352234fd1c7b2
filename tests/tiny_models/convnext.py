from __future__ import annotations

import transformers as tf

NAMES = ("convnext", "convnextv2")


def make(kind: str = "convnext"):
    shape = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "patch_size": 2, "image_size": 32}
    # Nothing of a block comes through at 1e-6, which suits trained weights.
    shape |= {"layer_scale_init_value": 1.0} if kind == "convnext" else {}
    config = tf.AutoConfig.for_model(kind, **shape)
    processor = tf.ConvNextImageProcessor(size={"shortest_edge": 32})
    return tf.AutoModelForImageClassification.from_config(config), processor
