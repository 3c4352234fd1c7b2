"""A random LLaVA-like model that takes 576 tokens for an image, as LLaVA 1.5 does, and rows to train it on.

Four layers of 256 in tower and language model, 32,000 words: small enough for a CPU, with the proportions that decide
what sharing is worth: most tokens of a row are the image's.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.rows import PLACE, shown, text, write_shard

__all__ = ["make_model", "write_pairs", "write_questions"]

SIDE, PATCH = 336, 14
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{%- generation -%}{{- part['text'] + '</s>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- part['text'] + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT: ' -}}{%- endif -%}"
)


def make_model(folder: Path, *, side: int = SIDE, width: int = 256, layers: int = 4) -> Path:
    """Write model and processor; ``side`` of 336 is 576 image tokens, one for each 14 x 14 pixels."""
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(alphabet)}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=letters,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "hidden_size": width}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(image_size=side, patch_size=PATCH, intermediate_size=4 * width, **heads),
        text_config=tf.LlamaConfig(
            vocab_size=32_000,
            intermediate_size=3 * width,
            num_key_value_heads=4,
            max_position_embeddings=8192,
            **heads,
            **ids,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-2,
        **ids,
    )
    torch.manual_seed(0)
    model = tf.LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_pairs(folder: Path, images: int, pairs: int, *, side: int = SIDE, letters: int = 40) -> Path:
    """Preferences on noise, that many on each image, answers of about so many letters, which are tokens here."""
    made = []
    for number in range(images * pairs):
        ask = "what is in this picture?" if pairs == 1 else f"{number}: what is in this picture?"
        prompt = [{"role": "user", "content": [PLACE, text(ask)]}]
        answers = {"chosen": "c" * (letters + number % 8), "rejected": "r" * (letters - number % 8)}
        sides = {side: [{"role": "assistant", "content": [text(words)]}] for side, words in answers.items()}
        made.append({**shown(number // pairs, side), "id": f"pair-{number}", "prompt": prompt, **sides})
    return write_shard(folder, "preference", made)


def write_questions(folder: Path, images: int, questions: int, *, side: int = SIDE, letters: int = 40) -> Path:
    """Questions with answers, that many on each image."""
    made = []
    for image in range(images):
        for question in range(questions):
            ask = {"role": "user", "content": [PLACE, text(f"{question}: what is in this picture?")]}
            answer = {"role": "assistant", "content": [text("abcdefgh"[question % 8] * (letters - question))]}
            row = {"id": f"{image}-{question}", "messages": [ask, answer]}
            made.append({**shown(image, side), **row})
    return write_shard(folder, "messages", made)
