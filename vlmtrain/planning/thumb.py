"""The rule of thumb of TRL's post on preference optimization of vision-language models: parameters times bytes.

https://huggingface.co/blog/dpo_vlm counts a model of N parameters in a type of P bytes as N P, a reference as N P
again, the gradients of T trained parameters as T P and AdamW's two averages as 2 T P. Full DPO of Idefics2-8b in
float32 is 32 + 32 + 32 + 64 = 160 GB there, LoRA in bfloat16 16 + 16 + 0.1 + 0.2 = 32.3 GB. Activations, logits and
images are not in it, nor are the adapter's own weights; and peft holds what it trains in float32 even on a bfloat16
base. Its 55,348,736 trained parameters are those of rank 16; the command it shows gives rank 8 and 27,674,368.
"""

from __future__ import annotations

from vlmtrain.config import Config
from vlmtrain.planning.rehearse import ITEMS, Memory, prepare
from vlmtrain.planning.shapes import Shape

__all__ = ["thumb"]


def thumb(config: Config, shape: Shape, *, copy: bool) -> Memory:
    """Counts times bytes.

    Args:
        config: of the run.
        shape: of its model.
        copy: a second model is kept as the reference.
    """
    model, count, size = prepare(config, shape)
    base = shape.stated or count
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if config.lora.tuner == "full":
        trained = round(base * (trained / count if "parts" in config.given else 1))
    items = dict.fromkeys(ITEMS, 0)
    items |= {"weights": base * size, "gradients": trained * size, "optimizer": 2 * trained * size}
    if copy:
        items["reference"] = base * size
    return Memory(items, "rule of thumb", base, trained)
