from __future__ import annotations

import torch
import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer


def make(split: bool = True):
    tok = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    config = tf.Idefics2Config(
        vision_config={**VISION, "image_size": 56, "patch_size": 14},
        perceiver_config={
            "hidden_size": WIDTH,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        },
        text_config={"model_type": "mistral", **LANGUAGE, **ids(tok), "sliding_window": None},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    model = tf.Idefics2ForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh weights this small, one behind the other, leave nothing of the image.
        for weight in model.model.connector.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    processor = tf.Idefics2Processor(
        image_processor=tf.Idefics2ImageProcessor(
            size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=split
        ),
        tokenizer=tok,
        image_seq_len=4,
        chat_template=CHATML.replace("IMAGE", "<image>"),
    )
    return model, processor
