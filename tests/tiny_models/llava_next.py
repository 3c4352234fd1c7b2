from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make():
    tok = tokenizer(named={"image_token": "<image>"})
    grids = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    config = tf.LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", **LANGUAGE, **ids(tok)},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=grids,
        image_seq_length=16,
    )
    processor = tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids
        ),
        tokenizer=tok,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>\\n"),
    )
    return tf.LlavaNextForConditionalGeneration(config), processor
