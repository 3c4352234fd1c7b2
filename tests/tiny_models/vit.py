from __future__ import annotations

import transformers as tf

from tiny_models.parts import VISION

NAMES = ("vit", "deit", "beit", "dinov2", "dinov2_with_registers", "swin")


def make(kind: str = "vit", labels: tuple[str, ...] | None = None, size: int = 28):
    """A classifier of that model type; without ``labels`` its head tells two unnamed classes apart."""
    names = labels or ()
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if names else {}
    shape = {**VISION, "image_size": size, "patch_size": 7}
    if kind == "swin":
        shape = {"image_size": size, "patch_size": 7, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
        shape |= {"window_size": 2}
    config = tf.AutoConfig.for_model(kind, **shape, **named, architectures=[])
    square = {"height": size, "width": size}
    processor = tf.ViTImageProcessor(size=square)
    if kind.startswith("dinov2"):
        processor = tf.BitImageProcessor(size={"shortest_edge": size + 4}, crop_size=square)
    return tf.AutoModelForImageClassification.from_config(config), processor
