from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer


def make(width: int = WIDTH, tied: bool = False):
    tok = tokenizer(named={"image_token": "<image>"})
    clip = {"model_type": "clip_vision_model", **VISION, "hidden_size": width, "image_size": 28, "patch_size": 14}
    config = tf.LlavaConfig(
        vision_config=clip,
        text_config={"model_type": "llama", **LANGUAGE, **ids(tok), "hidden_size": width, "tie_word_embeddings": tied},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>\\n"),
    )
    return tf.LlavaForConditionalGeneration(config), processor
