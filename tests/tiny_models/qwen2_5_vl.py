from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, WIDTH, ids, tokenizer


def make():
    tok = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    token = tok.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    tower = {"depth": 2, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    config = tf.Qwen2_5_VLConfig(
        text_config={**LANGUAGE, **ids(tok), "rope_parameters": rope},
        # One layer looks through windows of 56 pixels, one at the whole image.
        vision_config={**tower, "window_size": 56, "fullatt_block_indexes": [1]},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(size=size),
        tokenizer=tok,
        video_processor=tf.Qwen2VLVideoProcessor(),
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor
