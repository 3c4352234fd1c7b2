from __future__ import annotations

import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make():
    tok = tokenizer(
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    )
    config = tf.InternVLConfig(
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config={"model_type": "qwen2", **LANGUAGE, **ids(tok)},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    square = {"height": 28, "width": 28}
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tok,
        video_processor=tf.InternVLVideoProcessor(size=square),
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\\n"),
    )
    return tf.InternVLForConditionalGeneration(config), processor
