"""Models of a shape (``benchmarks.gpu_shapes``) in random numbers, with processors, made offline.

The tokenizer knows words, each of them one token, so that texts have as many tokens as they are meant to.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

from benchmarks.gpu_shapes import Shape

__all__ = ["WORDS", "empty_model", "make_model", "make_processor", "make_tokenizer", "sentence"]

_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo", "zu")
WORDS = [a + b for a in _SYLLABLES for b in _SYLLABLES]
_TEMPLATE_WORDS = [
    "You",
    "are",
    "a",
    "helpful",
    "assistant",
    "system",
    "user",
    "User",
    "Assistant",
    "USER",
    "ASSISTANT",
]
_TEMPLATE_WORDS += ["Yes", "No"]


def sentence(draws: random.Random, tokens: int) -> str:
    """Words, each of them a token."""
    return " ".join(draws.choices(WORDS, k=tokens))


def make_tokenizer(shape: Shape) -> Any:
    """One token for a word of this module, one for any other byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = dict.fromkeys(["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", shape.end, *shape.tokens])
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    words = [*WORDS, *_TEMPLATE_WORDS]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*words, *(f"{word} {word}" for word in words)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token=shape.end,
        model_max_length=shape.config["text_config"]["max_position_embeddings"],
        extra_special_tokens=shape.named,
    )


def make_model(shape: Shape, folder: Path, *, device: str, dtype: str) -> int:
    """Write a model of random numbers, with its processor.

    Args:
        shape: of the model.
        folder: that is made.
        device: where the numbers are drawn; a GPU draws billions in a second.
        dtype: of the weights, as torch calls it.

    Returns:
        How many parameters it has.
    """
    tokenizer = make_tokenizer(shape)
    model = empty_model(shape, tokenizer, dtype)
    model.to_empty(device=device)
    model.tie_weights()
    _draw(model, tokenizer)
    model.save_pretrained(folder)
    make_processor(shape, tokenizer).save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def empty_model(shape: Shape, tokenizer: Any, dtype: str) -> Any:
    """The model on the meta device: no numbers yet."""
    import torch
    import transformers as tf

    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in shape.ids.items()}
    settings: dict[str, Any] = {**copy.deepcopy(shape.config), **ids}
    settings["text_config"] |= {
        key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = tf.AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        return tf.AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))


def _draw(model: Any, tokenizer: Any) -> None:
    """Numbers that keep the size of what goes through, so that what comes out depends on what went in."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
        # Words alone are said: neither marks nor what the tokenizer does not know.
        head = model.get_output_embeddings().weight
        head[len(tokenizer) :] = 0
        head[tokenizer.all_special_ids] = 0


def make_processor(shape: Shape, tokenizer: Any) -> Any:
    """The processor of that shape: real image processing, these words."""
    import transformers as tf

    settings = {**shape.processor}
    images = _made(settings.pop("images"))
    if "video_processor" in settings:
        settings["video_processor"] = _made(settings["video_processor"])
    kind = getattr(tf, settings.pop("class"))
    return kind(image_processor=images, tokenizer=tokenizer, chat_template=shape.template, **settings)


def _made(settings: dict[str, Any]) -> Any:
    import transformers as tf

    values = dict(settings)
    return getattr(tf, values.pop("class"))(**values)
