from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, WIDTH, ids, tokenizer


def make():
    tok = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    token = tok.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    tower = {"depth": 3, "hidden_size": WIDTH, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": WIDTH}
    config = tf.Qwen3VLConfig(
        text_config={**LANGUAGE, **ids(tok), "rope_parameters": rope, "head_dim": 8},
        vision_config={**tower, "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    size = {"shortest_edge": 32 * 32, "longest_edge": 16 * 32 * 32}
    processor = tf.Qwen3VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(patch_size=16, size=size),
        tokenizer=tok,
        video_processor=tf.Qwen3VLVideoProcessor(patch_size=16),
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen3VLForConditionalGeneration(config), processor
