from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make(split: bool = True, longest_edge: int = 56):
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    names = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tok = tokenizer(*tiles, named=names)
    config = tf.SmolVLMConfig(
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", **LANGUAGE, **ids(tok)},
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    sizes = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": 28}}
    processor = tf.SmolVLMProcessor(
        image_processor=tf.SmolVLMImageProcessor(**sizes, do_image_splitting=split),
        tokenizer=tok,
        video_processor=tf.SmolVLMVideoProcessor(**sizes),
        image_seq_len=4,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    return tf.SmolVLMForConditionalGeneration(config), processor
