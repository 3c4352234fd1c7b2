"""Llama 3.2 Vision (Mllama): the language model looks at images through layers of cross-attention.

Paper:   https://arxiv.org/abs/2407.21783
Weights: https://huggingface.co/meta-llama/Llama-3.2-11B-Vision-Instruct

An image is one token of a row, whatever its size; the tower always sees as many tiles as the model was made for (4 of
560 pixels in the published ones), so there is nothing that ``--max-image-tokens`` could make smaller. A token sees the
last image before it, and the ones that stand right in front of that.

The embedding has 8 rows more than the LM head: the image token and its reserved kin can be read, not said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmtrain.family import Family

__all__ = ["FAMILY"]

_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{%- for part in message['content'] -%}"
    "{{- '<|image|>' if part['type'] == 'image' else part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)


def _expand(processor: Any, text: str, images: int) -> list[tuple[int, int, str]]:
    """Nothing: the image token stands for itself."""
    return []


def _count(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    return [1] * len(sizes)


def _see(processor: Any, images: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Pixels by row, as the cross-attention takes them; rows without images have padding only.

    Returns:
        ``pixel_values`` ``[B, images, tiles, 3, H, W]``, ``aspect_ratio_ids`` ``[B, images]``, ``aspect_ratio_mask``
        ``[B, images, tiles]``; nothing when no row has an image.
    """
    shown = [row for row, pictures in enumerate(images) if pictures]
    if not shown:
        return {}
    found = processor.image_processor([list(images[row]) for row in shown], return_tensors="pt")
    batch = {}
    for key in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"):
        batch[key] = found[key].new_zeros(len(images), *found[key].shape[1:])
        batch[key][shown] = found[key]
    # As the image processor marks the images it pads with.
    batch["aspect_ratio_mask"][..., 0] = 1
    return batch


def _complete(processor: Any, batch: Mapping[str, Any], said: Any) -> dict[str, Any]:
    """Which tiles each token of the whole row sees, ``[B, T, images, tiles]``.

    upstream bug: TRL makes it for the prompt alone and does not go on over the answer.
    """
    if "aspect_ratio_mask" not in batch:
        return {}
    import torch
    from transformers.models.mllama import processing_mllama as library

    rows, tiles = batch["input_ids"].tolist(), batch["aspect_ratio_mask"].sum(-1).tolist()
    spans = [library.get_cross_attention_token_mask(row, processor.image_token_id) for row in rows]
    most = batch["pixel_values"].shape[2]
    mask = library.convert_sparse_cross_attention_mask_to_dense(spans, tiles, most, len(rows[0]))
    return {"cross_attention_mask": torch.as_tensor(mask)}


def _features(model: Any, inputs: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """What the cross-attention layers look at, of each image once.

    Returns:
        ``cross_attention_states`` ``[copies * B * images * tiles, patches, hidden]``.
    """
    import torch

    net = model.model
    seen = net.multi_modal_projector(net.vision_model(**inputs).last_hidden_state)
    states = seen.reshape(-1, *seen.shape[-2:])
    return {"cross_attention_states": torch.cat([states] * copies)}


def _prepare_model(model: Any, processor: Any) -> None:
    """Let no row depend on how many images the others of its batch have.

    upstream bug: a token before the first image of its row attends to everything there is, to what pads its row's
    images too, and so does a whole row without images (``_prepare_cross_attention_mask`` turns a mask of nothing into
    one of everything, and the layer switches its MLP off only). Here what pads is never seen, and a row without
    images passes by the layer as it does when no row has one: what transformers computes for each row alone.
    """
    layers = model.model.language_model.layers
    for number in model.config.text_config.cross_attention_layers:
        layers[number].register_forward_pre_hook(_hide_padding(model.config.vision_config), with_kwargs=True)
        layers[number].register_forward_hook(_pass_by, with_kwargs=True)


def _hide_padding(vision: Any) -> Callable[..., Any]:
    import torch

    size = vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)

    def hide(
        layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        mask, seen = kwargs.get("cross_attention_mask"), kwargs.get("full_text_row_masked_out_mask")
        if mask is None or seen is None or mask.shape[-1] == size:
            return None
        images = mask.unflatten(-1, (-1, size))
        # An image that no token of the row sees is padding: [B, 1, 1, images].
        shown = ((images == 0).any(-1) & (seen != 0)).any(dim=2, keepdim=True)
        padding = (seen == 0) & ~shown
        filled = images.masked_fill(padding[..., None], torch.finfo(mask.dtype).min)
        return args, {**kwargs, "cross_attention_mask": filled.flatten(-2)}

    return hide


def _pass_by(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
    seen = kwargs.get("full_text_row_masked_out_mask")
    if seen is None:
        return output
    blind = (seen[:, 0] == 0).all(dim=1, keepdim=True)
    return output.where(~blind, args[0])


FAMILY = Family(
    name="mllama",
    model_types=("mllama",),
    url="https://arxiv.org/abs/2407.21783",
    summary="Llama 3.2 Vision: cross-attention to up to four tiles an image; one token of a row each",
    targets={
        "vision": {
            "attention": r"(.*\.)?vision_model\..*\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?vision_model\..*\.mlp\.(fc1|fc2)",
        },
        "projector": {"mlp": r"(.*\.)?multi_modal_projector"},
        "language": {
            "attention": r"(.*\.)?language_model\..*\.(self_attn|cross_attn)\.(q_proj|k_proj|v_proj|o_proj)",
            "mlp": r"(.*\.)?language_model\..*\.mlp\.(gate_proj|up_proj|down_proj)",
        },
    },
    towers=("model.vision_model.", "model.multi_modal_projector."),
    casts_pixels=True,
    folds_not="images are looked at across the rows",
    chat_template=_TEMPLATE,
    nested_images=True,
    expand=_expand,
    see=_see,
    count_tokens=_count,
    complete=_complete,
    features=_features,
    feature_inputs=("aspect_ratio_ids", "aspect_ratio_mask"),
    prepare_model=_prepare_model,
)
