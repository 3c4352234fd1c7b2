from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make():
    tok = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]", "[/INST]")
    config = tf.LlavaConfig(
        vision_config={"model_type": "pixtral", **VISION, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "mistral", **LANGUAGE, **ids(tok), "head_dim": 8, "sliding_window": None},
        image_token_index=tok.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=1,
    )
    processor = tf.PixtralProcessor(
        image_processor=tf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14}),
        tokenizer=tok,
        patch_size=14,
        chat_template=CHATML.replace("IMAGE", "[IMG]"),
    )
    return tf.LlavaForConditionalGeneration(config), processor
