from __future__ import annotations

import torch
import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, ids, tokenizer


def make(crops: bool = True):
    tok = tokenizer(
        "<start_of_turn>",
        "<end_of_turn>",
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    )
    tower = {"model_type": "siglip_vision_model", **VISION, "image_size": 28, "patch_size": 7}
    config = tf.Gemma3Config(
        vision_config={**tower, "vision_use_head": False},
        text_config={
            **LANGUAGE,
            **ids(tok),
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 64,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        mm_tokens_per_image=4,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        image_token_index=tok.image_token_id,
    )
    model = tf.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh, this weight is zero and the model blind.
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.3)
    processor = tf.Gemma3Processor(
        image_processor=tf.Gemma3ImageProcessor(
            size={"height": 28, "width": 28}, do_pan_and_scan=crops, pan_and_scan_min_crop_size=28
        ),
        tokenizer=tok,
        image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<start_of_image>"),
    )
    return model, processor
