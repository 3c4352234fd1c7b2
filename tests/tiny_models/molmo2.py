from __future__ import annotations

import torch
import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer

IMAGE_TOKENS = ("<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>")


def make(crops: int = 6):
    tok = tokenizer(*IMAGE_TOKENS, "<frame_end>", "<im_low>", "<|image|>", "<|video|>")
    token = tok.convert_tokens_to_ids
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    config = tf.Molmo2Config(
        vision_config={**VISION, **heads, "image_size": [56, 56], "patch_size": 14},
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            **heads,
            "intermediate_size": 64,
            "text_hidden_size": WIDTH,
        },
        text_config={**LANGUAGE, **ids(tok), "head_dim": 8, "additional_vocab_size": 0},
        image_start_token_id=token("<im_start>"),
        low_res_image_start_token_id=token("<low_res_im_start>"),
        image_end_token_id=token("<im_end>"),
        image_patch_id=token("<im_patch>"),
        frame_start_token_id=token("<frame_start>"),
        frame_end_token_id=token("<frame_end>"),
        **{key: value for key, value in ids(tok).items() if key != "vocab_size"},
    )
    model = tf.Molmo2ForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh weights this small, one behind the other, leave nothing of the image.
        for weight in model.model.multi_modal_projector.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    square = {"height": 56, "width": 56}
    processor = tf.Molmo2Processor(
        image_processor=tf.Molmo2ImageProcessor(
            size=square, max_crops=crops, overlap_margins=[1, 0], patch_size=14, pooling_size=[2, 2]
        ),
        video_processor=tf.Molmo2VideoProcessor(size=square, patch_size=14),
        tokenizer=tok,
        chat_template=CHATML.replace("IMAGE", "<|image|>"),
    )
    return model, processor
