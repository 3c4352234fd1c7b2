"""Processors of models whose files are not here: real image processing, a tokenizer of bare letters."""

from __future__ import annotations

from typing import Any

from vlmtrain.family import Family

__all__ = ["make_processor"]


def make_processor(spec: dict[str, Any], config: Any, family: Family) -> Any:
    """The processor that a packaged configuration describes.

    Args:
        spec: of a packaged file: ``image_processor`` with its class, ``processor`` with its class, ``tokens`` the
            special ones, ``named`` those the tokenizer has an attribute for, ``ids`` those the configuration names by
            number.
        config: of the model; gets this tokenizer's numbers.
        family: of the model.
    """
    import transformers

    images = _make(spec["image_processor"])
    if family.task == "classify":
        return images
    tokenizer = _tokenizer(spec["tokens"], spec.get("named", {}), config.get_text_config().max_position_embeddings)
    for key, token in spec["ids"].items():
        setattr(config, key, tokenizer.convert_tokens_to_ids(token))
    settings = dict(spec["processor"])
    if "video_processor" in spec:
        settings["video_processor"] = _make(spec["video_processor"])
    kind = getattr(transformers, settings.pop("class"))
    processor = kind(image_processor=images, tokenizer=tokenizer, **settings)
    processor.chat_template = family.chat_template
    if family.prepare_processor is not None:
        family.prepare_processor(processor)
    return processor


def _make(settings: dict[str, Any]) -> Any:
    import transformers

    values = dict(settings)
    attributes = values.pop("attributes", {})
    made = getattr(transformers, values.pop("class"))(**values)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def _tokenizer(special: list[str], named: dict[str, str], limit: int) -> Any:
    """One token a byte, and the special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", *special]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate([*names, *letters])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(names)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=limit,
        extra_special_tokens=named,
    )
