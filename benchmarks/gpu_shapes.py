"""Shapes of published models, without their weights: configuration, processor, template, picture, lengths of texts.

The numbers are those of the ``config.json`` and ``preprocessor_config.json`` of each repository, as of 2025; what is
left out is the default of transformers. ``parameters`` is what the repository states; the model made has as many.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SHAPES", "Shape"]

# The templates of the families (vlmtrain.families), with marks around what is learned, which TRL asks for.
_SMOLVLM = (
    "{{- '<|im_start|>' -}}"
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}"
    "{{- message['role'].capitalize() -}}"
    "{{- ':' if message['content'][0]['type'] == 'image' else ': ' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- part['text'] + '<end_of_utterance>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- part['text'] + '<end_of_utterance>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\nAssistant:' -}}{%- endif -%}"
)
_QWEN = (
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>' -}}"
    "{%- for message in messages -%}"
    "{{- '\\n<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- part['text'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- part['text'] + '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n<|im_start|>assistant\\n' -}}{%- endif -%}"
)
_LLAVA = (
    "{%- for message in messages -%}"
    "{{- 'ASSISTANT: ' if message['role'] == 'assistant' else 'USER: ' -}}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- part['text'] + '</s>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- part['text'] + ' ' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to be made of random numbers.

    Attributes:
        source: where the numbers are from.
        parameters: of the model.
        config: of transformers; ``ids`` of it are tokens by name.
        processor: settings, with its class and the image processor's.
        tokens: special ones; ``named`` those the tokenizer has an attribute for.
        end: the token that ends an answer.
        template: for chats.
        side: of a picture in pixels; ``image_tokens`` it then takes, in ``tiles`` that the tower sees one by one.
        answer: mean tokens of an answer.
        target: how many times faster a DPO step is meant to be than TRL's.
        tiny: replaces settings for a shape that a CPU computes in a moment: ``config``, ``processor``, ``side``.
    """

    source: str
    parameters: int
    config: dict[str, Any]
    ids: dict[str, str]
    processor: dict[str, Any]
    tokens: tuple[str, ...]
    end: str
    template: str = field(repr=False)
    side: int
    image_tokens: int
    tiles: int
    answer: int
    target: float
    tiny: dict[str, Any] = field(repr=False)
    named: dict[str, str] = field(default_factory=dict)

    def shrunk(self) -> Shape:
        """The same kind of model, tiny, with short texts."""
        made = copy.deepcopy(self)
        return dataclasses.replace(
            made,
            config=_merged(made.config, made.tiny["config"]),
            processor=_merged(made.processor, made.tiny["processor"]),
            parameters=0,
            answer=12,
            **{name: made.tiny[name] for name in ("side", "image_tokens", "tiles")},
        )


_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_SMALL_TEXT = {**_SMALL, "num_key_value_heads": 2, "vocab_size": 4096}
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

SHAPES = {
    # A square picture is made 2048 pixels wide: 4 x 4 tiles of 512 and one of the whole, 64 tokens each.
    "smolvlm": Shape(
        source="https://huggingface.co/HuggingFaceTB/SmolVLM-256M-Instruct",
        parameters=256_484_928,
        config={
            "model_type": "idefics3",
            "scale_factor": 4,
            "tie_word_embeddings": False,
            "vision_config": {
                "hidden_size": 768,
                "image_size": 512,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "num_hidden_layers": 12,
                "patch_size": 16,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "vocab_size": 49280,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            },
        },
        ids={"image_token_id": "<image>"},
        processor={
            "class": "Idefics3Processor",
            "image_seq_len": 64,
            "images": {
                "class": "Idefics3ImageProcessor",
                "size": {"longest_edge": 2048},
                "max_image_size": {"longest_edge": 512},
                "do_image_splitting": True,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
            },
        },
        tokens=("<fake_token_around_image>", "<image>", "<global-img>", *_TILES),
        end="<end_of_utterance>",
        template=_SMOLVLM,
        side=512,
        image_tokens=17 * 64,
        tiles=17,
        answer=120,
        target=4.5,
        tiny={
            "config": {
                "scale_factor": 2,
                "vision_config": {**_SMALL, "image_size": 64},
                "text_config": _SMALL_TEXT,
            },
            "processor": {
                "image_seq_len": 4,
                "images": {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}},
            },
            "side": 64,
            "image_tokens": 5 * 4,
            "tiles": 5,
        },
    ),
    # One token for 28 x 28 pixels.
    "qwen": Shape(
        source="https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct",
        parameters=3_754_622_976,
        config={
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": True,
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
        },
        ids={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        processor={
            "class": "Qwen2_5_VLProcessor",
            "video_processor": {"class": "Qwen2VLVideoProcessor"},
            "images": {
                "class": "Qwen2VLImageProcessor",
                "size": {"shortest_edge": 3136, "longest_edge": 12845056},
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": _CLIP_MEAN,
                "image_std": _CLIP_STD,
            },
        },
        tokens=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        end="<|im_end|>",
        template=_QWEN,
        side=448,
        image_tokens=256,
        tiles=1,
        answer=120,
        target=2.1,
        tiny={
            "config": {
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 64,
                    "intermediate_size": 96,
                    "num_heads": 4,
                    "out_hidden_size": 64,
                    "fullatt_block_indexes": [1],
                },
                "text_config": {**_SMALL_TEXT, "rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
            },
            "processor": {},
            "side": 112,
            "image_tokens": 16,
            "tiles": 1,
        },
    ),
    # 24 x 24 tokens for every picture.
    "llava": Shape(
        source="https://huggingface.co/llava-hf/llava-1.5-7b-hf",
        parameters=7_063_427_072,
        config={
            "model_type": "llava",
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_seq_length": 576,
            "tie_word_embeddings": False,
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
            },
            "text_config": {
                "model_type": "llama",
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "vocab_size": 32064,
                "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
                "tie_word_embeddings": False,
            },
        },
        ids={"image_token_index": "<image>"},
        processor={
            "class": "LlavaProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
            "images": {
                "class": "CLIPImageProcessor",
                "size": {"shortest_edge": 336},
                "crop_size": {"height": 336, "width": 336},
                "image_mean": _CLIP_MEAN,
                "image_std": _CLIP_STD,
            },
        },
        tokens=("<image>",),
        named={"image_token": "<image>"},
        end="</s>",
        template=_LLAVA,
        side=336,
        image_tokens=576,
        tiles=1,
        answer=80,
        target=1.5,
        tiny={
            "config": {
                "image_seq_length": 16,
                "vision_config": {**_SMALL, "num_hidden_layers": 3, "image_size": 56},
                "text_config": _SMALL_TEXT,
            },
            "processor": {
                "images": {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
            },
            "side": 56,
            "image_tokens": 16,
            "tiles": 1,
        },
    ),
}

# The same model on larger pictures, which is what its target was reckoned for.
SHAPES["qwen-896"] = dataclasses.replace(SHAPES["qwen"], side=896, image_tokens=1024)


def _merged(whole: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with some replaced, inside settings of settings too."""
    return whole | {
        key: _merged(whole[key], value) if isinstance(value, dict) and isinstance(whole.get(key), dict) else value
        for key, value in changes.items()
    }
