from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make(split: bool = True):
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tok = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    config = tf.Idefics3Config(
        vision_config={**VISION, "image_size": 28, "patch_size": 7},
        text_config={"model_type": "llama", **LANGUAGE, **ids(tok)},
        scale_factor=2,
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        pad_token_id=tok.pad_token_id,
    )
    processor = tf.Idefics3Processor(
        image_processor=tf.Idefics3ImageProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=split
        ),
        tokenizer=tok,
        image_seq_len=4,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    return tf.Idefics3ForConditionalGeneration(config), processor
