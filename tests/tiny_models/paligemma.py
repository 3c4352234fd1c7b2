from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer


def make(width: int = WIDTH):
    images = tf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = tf.PaliGemmaProcessor(
        image_processor=images, tokenizer=tokenizer("<image>"), chat_template=CHATML.replace("IMAGE", "<image>")
    )
    # With the 1152 tokens for places and masks that the processor adds.
    tok = processor.tokenizer
    tower = {"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 14}
    config = tf.PaliGemmaConfig(
        vision_config={**tower, "hidden_size": width, "projection_dim": width, "vision_use_head": False},
        text_config={"model_type": "gemma", **LANGUAGE, **ids(tok), "hidden_size": width, "head_dim": 8},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=width,
        hidden_size=width,
        **{key: value for key, value in ids(tok).items() if key != "vocab_size"},
    )
    return tf.PaliGemmaForConditionalGeneration(config), processor
