"""What the tiny models of all families are made of: sizes, a byte-level tokenizer, a chat template."""

from __future__ import annotations

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["CHATML", "LANGUAGE", "VISION", "WIDTH", "ids", "tokenizer"]

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
