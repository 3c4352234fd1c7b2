"""A local model: any family of vlmtrain, with or without an adapter, answering in batches.

The one module of vlmeval that touches vlmtrain: the family that trained an adapter loads it and writes its prompts.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, DataError
from vlmeval.shardset import reader
from vlmeval.task import Item, Response

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmtrain.model import Loaded

__all__ = ["Local", "batches"]

_WINDOW = 16
_LIKELIEST = 5
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


class Local:
    """A model to be loaded when the first answer is wanted.

    Attributes:
        loaded: the model, once it is.
    """

    def __init__(
        self,
        model: str | None,
        adapter: str | Path | None,
        *,
        images: Path | None,
        batch_size: int,
        max_new_tokens: Mapping[str, int],
        prompt_suffix: str = "",
        dtype: str = "auto",
        quantize: str = "none",
        device: str | None = None,
        max_image_tokens: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Check what can be checked without loading.

        Args:
            model: base model; None takes the adapter's own base.
            adapter: a run folder or any PEFT adapter folder.
            images: the folder the items' image names are below, or the converted dataset that holds them.
            batch_size: prompts per call.
            max_new_tokens: limit of new tokens by kind of item.
            prompt_suffix: added to every prompt after a line break.
            dtype: see ``vlmtrain.model.load``, like all that follow.
            quantize: none, 8bit or 4bit.
            device: None picks one.
            max_image_tokens: image budget.
            trust_remote_code: run code that comes with a hub model.

        Raises:
            ConfigError: neither a model nor an adapter, or a number that cannot be.
            MissingError: the model or adapter folder is not there.
        """
        from vlmtrain.model import locate, read_run

        if batch_size < 1:
            raise ConfigError(f"--batch-size is at least 1, got {batch_size}")
        if min(max_new_tokens.values()) < 1:
            raise ConfigError(f"an answer needs at least 1 new token, got {min(max_new_tokens.values())}")
        run = read_run(adapter) if adapter else {}
        if model:
            locate(model)
        self.model, self.adapter, self.images = model, adapter, images
        self.batch_size, self.max_new_tokens, self.prompt_suffix = batch_size, dict(max_new_tokens), prompt_suffix
        self.options: dict[str, Any] = {
            "dtype": dtype,
            "quantize": quantize,
            "max_image_tokens": max_image_tokens,
            "trust_remote_code": trust_remote_code,
        }
        self.device = device
        self.name = model or str(run.get("base"))
        self.loaded: Loaded | None = None
        self._read: Callable[[str], bytes] | None = None

    def describe(self) -> dict[str, Any]:
        """Everything that can change an answer; more of it is known once the model is loaded."""
        known: dict[str, Any] = {
            "kind": "local",
            "model": self.name,
            "adapter": str(self.adapter) if self.adapter else None,
            "adapter_sha256": _adapter_hash(Path(self.adapter)) if self.adapter else None,
            "prompt_suffix": self.prompt_suffix,
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            **{name: value for name, value in self.options.items() if name != "trust_remote_code"},
        }
        if self.loaded is not None:
            known |= {
                "base": self.loaded.base,
                "base_hash": self.loaded.base_hash,
                "family": self.loaded.family.name,
                "loaded_dtype": str(self.loaded.model.dtype).removeprefix("torch."),
            }
            if not self.classifies:
                template = str(self.loaded.processor.chat_template).encode()
                known["chat_template_sha256"] = hashlib.sha256(template).hexdigest()
        return known

    def environment(self) -> dict[str, Any]:
        """What is not meant to change an answer, and yet may in the last digit: recorded, never compared."""
        import peft
        import torch
        import transformers

        device = str(self.loaded.model.device) if self.loaded else None
        versions = {module.__name__: str(module.__version__) for module in (torch, transformers, peft)}
        return {"batch_size": self.batch_size, "padding_side": "left", "device": device, "versions": versions}

    def load(self) -> None:
        """Load the model.

        Raises:
            VlmError: it cannot be loaded; see ``vlmtrain.model.load``.
        """
        from vlmtrain.model import load

        if self.loaded is None:
            self.loaded = load(self.model, self.adapter, device=self.device, **self.options)

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        """Answer the items that are not done, batch by batch; items of one image stay near each other.

        Raises:
            DataError: an image cannot be decoded.
            ConfigError: a batch does not fit into the accelerator's memory.
        """
        import torch

        self.load()
        for whole in batches(items, self.batch_size):
            batch = [item for item in whole if item.id not in done]
            if not batch:
                continue
            try:
                yield self._classify(batch) if self.classifies else self._generate(batch)
            except torch.OutOfMemoryError:
                raise ConfigError(
                    f"out of memory with --batch-size {self.batch_size}: give a smaller one, and --resume to keep the "
                    "answers that are there"
                ) from None

    def reply(
        self,
        turns: Sequence[Mapping[str, Any]],
        images: Sequence[str],
        generation: Mapping[str, Any],
        seed: int,
        stream: Callable[[str], None] | None = None,
    ) -> tuple[str, int]:
        """One answer to a conversation that ends with a user's turn.

        Args:
            turns: message lists in shard form.
            images: file names of its image parts, in order.
            generation: changes of the model's generation config.
            seed: of the draws, where there are any.
            stream: told each piece of text as it comes.

        Returns:
            The text, and the number of new tokens. An image classifier gives its likeliest classes, one a line, with
            their probabilities.

        Raises:
            ConfigError: an image classifier is asked in words, or shown more or less than one image.
        """
        import copy

        import torch
        from transformers import TextStreamer

        from vlmtrain.collate import prompt_batch

        self.load()
        assert self.loaded is not None
        model, processor = self.loaded.model, self.loaded.processor
        pictures = [self._open(name) for name in images]
        if self.classifies:
            return self._named(turns, pictures), 0
        inputs = self._placed(prompt_batch(processor, self.loaded.family, [turns], [pictures]))
        config = copy.deepcopy(model.generation_config)
        config.update(**{**dict.fromkeys(_SAMPLING), "num_beams": 1, "max_length": None, **generation})

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if stream is not None:
                    stream(text)

        streamer = Pieces(processor.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = model.generate(**inputs, generation_config=config, streamer=streamer)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)

    def _placed(self, inputs: Any) -> Any:
        """A batch on the model's device, in its type."""
        import torch

        assert self.loaded is not None
        inputs = inputs.to(self.loaded.model.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.loaded.model.dtype)
        return inputs

    def _generate(self, batch: Sequence[Item]) -> list[Response]:
        import torch

        from vlmtrain.collate import prompt_batch

        assert self.loaded is not None
        model, processor = self.loaded.model, self.loaded.processor
        images = [[self._open(name) for name in item.images] for item in batch]
        messages = [self._messages(item) for item in batch]
        inputs = self._placed(prompt_batch(processor, self.loaded.family, messages, images))
        config = _greedy(model.generation_config, self.max_new_tokens["text" if batch[0].kind == "text" else "answer"])
        with torch.inference_mode():
            tokens = model.generate(**inputs, generation_config=config)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [Response(item.id, text.strip()) for item, text in zip(batch, texts, strict=True)]

    @property
    def classifies(self) -> bool:
        """Whether the model is an image classifier; it answers with the names of its likeliest classes, one a line."""
        return self.loaded is not None and self.loaded.family.task == "classify"

    def _classify(self, batch: Sequence[Item]) -> list[Response]:
        if batch[0].kind != "class":
            raise ConfigError(f"{self.name} is an image classifier and answers no questions: use vlmeval classify")
        odd = next((item for item in batch if len(item.images) != 1), None)
        if odd is not None:
            raise DataError(f"item {odd.id} has {len(odd.images)} images; an image classifier takes one")
        likeliest = self._likeliest([self._open(item.images[0]) for item in batch])
        texts = ("\n".join(name for name, _ in ranked) for ranked in likeliest)
        return [Response(item.id, text) for item, text in zip(batch, texts, strict=True)]

    def _named(self, turns: Sequence[Mapping[str, Any]], pictures: Sequence[Image]) -> str:
        words = any(part["type"] == "text" for turn in turns for part in turn["content"])
        if words or len(pictures) != 1:
            raise ConfigError(f"{self.name} is an image classifier: show it one image, and ask nothing")
        (ranked,) = self._likeliest(pictures)
        return "\n".join(f"{name}  {100 * probability:.1f} %" for name, probability in ranked)

    def _likeliest(self, pictures: Sequence[Image]) -> list[list[tuple[str, float]]]:
        """The likeliest classes of each picture with their probabilities."""
        import torch

        from vlmtrain.classifiers import classes

        assert self.loaded is not None
        pixels = self._placed(self.loaded.processor(images=pictures, return_tensors="pt"))["pixel_values"]
        with torch.inference_mode():
            logits = self.loaded.model(pixel_values=pixels).logits
        names = classes(self.loaded.model.config)
        found = logits.float().softmax(-1).topk(min(_LIKELIEST, len(names)), dim=-1)
        rows = zip(found.values.tolist(), found.indices.tolist(), strict=True)
        return [[(names[i], p) for p, i in zip(values, indices, strict=True)] for values, indices in rows]

    def _messages(self, item: Item) -> list[Mapping[str, Any]]:
        if item.turns:
            last = item.turns[-1]
            more = [{"type": "text", "text": f"\n{self.prompt_suffix}"}] if self.prompt_suffix else []
            return [*item.turns[:-1], {**last, "content": [*last["content"], *more]}]
        text = f"{item.prompt}\n{self.prompt_suffix}" if self.prompt_suffix else item.prompt
        pictures: list[dict[str, Any]] = [{"type": "image", "text": None} for _ in item.images]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": text}]}]

    def _open(self, name: str) -> Image:
        from PIL import Image, ImageOps

        if self._read is None:
            self._read = reader(self.images) if self.images else lambda path: Path(path).read_bytes()
        try:
            with Image.open(io.BytesIO(self._read(name))) as file:
                picture = ImageOps.exif_transpose(file)
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    white = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(white, picture)
                return picture.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"image {(self.images or Path()) / name} cannot be decoded: {error}") from error


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """Cut items into batches of one kind, of similar prompt length, with the items of an image near each other."""
    for kind in dict.fromkeys(item.kind for item in items):
        group = sorted((item for item in items if item.kind == kind), key=_Order(items))
        window = size * _WINDOW
        for start in range(0, len(group), window):
            near = sorted(group[start : start + window], key=lambda item: len(item.prompt))
            for first in range(0, len(near), size):
                yield near[first : first + size]


class _Order:
    """Images in order of first appearance."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.rank = {cluster: rank for rank, cluster in enumerate(dict.fromkeys(item.cluster for item in items))}

    def __call__(self, item: Item) -> int:
        return self.rank[item.cluster]


def _greedy(config: Any, max_new_tokens: int) -> Any:
    """The model's own generation config, without sampling."""
    import copy

    greedy = copy.deepcopy(config)
    greedy.update(do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, max_length=None)
    greedy.update(**dict.fromkeys(_SAMPLING))
    return greedy


def _adapter_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "loftq.safetensors"):
        path = folder / name
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
