from __future__ import annotations

import torch
import transformers as tf

from tiny_models.parts import CHATML, LANGUAGE, VISION, WIDTH, ids, tokenizer


def make(width: int = WIDTH, dropout: float = 0.1):
    # Not a named token: the processor wants an object there.
    tok = tokenizer("<image>")
    config = tf.Blip2Config(
        vision_config={**VISION, "image_size": 28, "patch_size": 14, "initializer_range": 0.02},
        qformer_config={
            "vocab_size": len(tok),
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "encoder_hidden_size": WIDTH,
        },
        text_config={
            "model_type": "opt",
            **ids(tok),
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "ffn_dim": 64,
            "num_hidden_layers": LANGUAGE["num_hidden_layers"],
            "num_attention_heads": LANGUAGE["num_attention_heads"],
            "max_position_embeddings": LANGUAGE["max_position_embeddings"],
            "dropout": dropout,
        },
        num_query_tokens=4,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
    )
    model = tf.Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh, the queries are all zero, and weights this small, one behind the other, leave nothing of the image.
        model.query_tokens.normal_()
        for weight in [*model.qformer.parameters(), *model.language_projection.parameters()]:
            if weight.ndim == 2:
                weight.mul_(5)
    processor = tf.Blip2Processor(
        image_processor=tf.BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer=tok, num_query_tokens=4
    )
    processor.chat_template = CHATML.replace("IMAGE", "<image>")
    return model, processor
