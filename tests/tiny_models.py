"""A small random model of every family, with processor, made offline: ``make("llava", folder)``.

``head_gain`` scales the frozen random LM head: at 1 its logits are too flat for a LoRA to bring the loss down.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["FAMILIES", "make"]

WIDTH = 32
WORDS = ["Describe the picture.", "What colour is it?", "It is a red square.", "It is a blue circle.", "Yes. No. green"]
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
VISION = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m['role'] + '\\n' -}}"
    "{%- for p in m['content'] -%}{{- 'IMAGE' if p['type'] == 'image' else p['text'] -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def tokenizer(*special: str, named: dict[str, str] | None = None) -> tf.PreTrainedTokenizerFast:
    """Byte-level, so every text has tokens."""
    names = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *special, *(named or {}).values()]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        WORDS * 4, trainers.BpeTrainer(vocab_size=300 + len(names), special_tokens=names, initial_alphabet=alphabet)
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        model_max_length=4096,
        extra_special_tokens=named or {},
    )


def ids(tok: tf.PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "vocab_size": len(tok),
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
    }


def llava(width: int = WIDTH, tied: bool = False):
    tok = tokenizer(named={"image_token": "<image>"})
    clip = {"model_type": "clip_vision_model", **VISION, "hidden_size": width, "image_size": 28, "patch_size": 14}
    config = tf.LlavaConfig(
        vision_config=clip,
        text_config={"model_type": "llama", **LANGUAGE, **ids(tok), "hidden_size": width, "tie_word_embeddings": tied},
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHATML.replace("IMAGE", "<image>\\n"),
    )
    return tf.LlavaForConditionalGeneration(config), processor


def qwen2_vl():
    tok = tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    token = tok.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = tf.Qwen2VLConfig(
        text_config={**LANGUAGE, **ids(tok), "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 16 * 28 * 28}
    processor = tf.Qwen2VLProcessor(
        image_processor=tf.Qwen2VLImageProcessor(size=size),
        tokenizer=tok,
        video_processor=tf.Qwen2VLVideoProcessor(),
        chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return tf.Qwen2VLForConditionalGeneration(config), processor


def idefics3(split: bool = True):
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


FAMILIES = {"idefics3": idefics3, "llava": llava, "qwen2_vl": qwen2_vl}


def make(
    family: str, folder: Path, *, seed: int = 0, head_gain: float = 1.0, chat_template: bool = True, **kwargs
) -> Path:
    """Write a model folder of that family; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[family](**kwargs)
    with torch.no_grad():
        model.lm_head.weight.mul_(head_gain)
    if not chat_template:
        processor.chat_template = None
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
