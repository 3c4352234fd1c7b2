from __future__ import annotations

import torch
import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer


def make(width: int = WIDTH):
    tok = tokenizer("<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    vocabulary = ids(tok)
    # Last, as in the published models: it has no row in the LM head.
    tok.add_tokens(["<|image|>"], special_tokens=True)
    image = tok.convert_tokens_to_ids("<|image|>")
    vision = {key: value for key, value in VISION.items() if key != "num_attention_heads"}
    config = tf.MllamaConfig(
        vision_config={
            **vision,
            "attention_heads": 2,
            "num_global_layers": 1,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 2 * WIDTH,
        },
        text_config={
            **LANGUAGE,
            **vocabulary,
            "hidden_size": width,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        image_token_index=image,
    )
    model = tf.MllamaForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh, these gates are zero and the model blind.
        for name, weight in model.named_parameters():
            if name.endswith("gate"):
                weight.normal_(0.5, 0.3)
    processor = tf.MllamaProcessor(
        image_processor=tf.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=2),
        tokenizer=tok,
        chat_template=CHATML.replace("IMAGE", "<|image|>"),
    )
    return model, processor
