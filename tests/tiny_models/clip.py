from __future__ import annotations

import transformers as tf

from tiny_models.parts import VISION

NAMES = ("clip", "siglip")


def make(kind: str = "clip"):
    """With a text tower that nothing uses, as in the published weights."""
    shape = {**VISION, "image_size": 28, "patch_size": 7}
    text = {**VISION, "vocab_size": 64, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    config = tf.AutoConfig.for_model(kind, vision_config=shape, text_config=text)
    square = {"height": 28, "width": 28}
    processor = tf.SiglipImageProcessor(size=square)
    if kind == "clip":
        processor = tf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=square)
    return tf.AutoModelForImageClassification.from_config(config), processor
