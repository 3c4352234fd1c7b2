"""A local model: any family of vlmtrain, with or without an adapter, answering in batches.

The one module of vlmeval that touches vlmtrain: the family that trained an adapter loads it and writes its prompts.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, VlmError
from vlmeval.models import computing, provenance
from vlmeval.models import prefix as prefixes
from vlmeval.models.batching import ahead, batches, pieces
from vlmeval.models.first_token import spellings
from vlmeval.models.fitting import Fitting
from vlmeval.models.pictures import Pictures
from vlmeval.models.prefix_reading import PrefixReader
from vlmeval.models.prefix_sharing import OFF, Sharing
from vlmeval.models.preparing import Prepared, Reader
from vlmeval.models.questions import folder_names, turns_of
from vlmeval.task import Item, Response

if TYPE_CHECKING:
    from vlmtrain.model import Loaded
    from vlmtrain.questions import Questions
    from vlmtrain.slots import Shelf

__all__ = ["ANSWERS", "Local", "batches", "several"]

ANSWERS = ("generate", "logits", "both")
"""How items with choices are answered: in words, by the probabilities of their first tokens, or in words with both."""
_SEED = 0


class Local:
    """A model to be loaded when the first answer is wanted.

    Attributes:
        loaded: the model, while it is.
        loads_ahead: batches that are decoded and processed while the model computes; 0 does one after the other.
    """

    loads_ahead = 2

    def __init__(
        self,
        model: str | None,
        adapter: str | Path | None,
        *,
        images: Path | None,
        batch_size: int,
        max_new_tokens: Mapping[str, int],
        answers: str = "generate",
        prompt_suffix: str = "",
        dtype: str = "auto",
        quantize: str = "none",
        device: str | None = None,
        device_map: str | Mapping[str, Any] | None = None,
        max_image_tokens: int | None = None,
        merged: bool = False,
        trust_remote_code: bool = False,
        share_prefix: bool = True,
        verify_prefix: int = 0,
    ) -> None:
        """Check what can be checked without loading.

        Args:
            model: base model; None takes the adapter's own base.
            adapter: a run folder, a full fine-tuning's too, or any PEFT adapter folder or hub id.
            images: the folder the items' image names are below, or the converted dataset that holds them.
            batch_size: prompts per call; halved where they do not fit into memory.
            max_new_tokens: limit of new tokens by kind of item.
            answers: one of ``ANSWERS``; items without choices are answered in words in each of them.
            prompt_suffix: added to every prompt after a line break.
            dtype: see ``vlmtrain.model.load``, like all that follow.
            quantize: none, 8bit or 4bit.
            device: None picks one.
            device_map: spread the model over devices; excludes ``device``.
            max_image_tokens: image budget.
            merged: add the adapter's weights to the base's before asking; only where the base is not quantized, as
                sums of rounded weights would be other weights than ``vlmtrain merge`` writes.
            trust_remote_code: run code that comes with a hub model.
            share_prefix: read an image once for all that is asked about it, where the family lets it be exact.
            verify_prefix: answer that many of these items a second time, each reading its image anew, and compare.

        Raises:
            ConfigError: neither a model nor an adapter, or options that cannot be or do not go together.
            MissingError: the model or adapter folder is not there.
        """
        from vlmtrain.auto_batch import is_out_of_memory
        from vlmtrain.bases import spread
        from vlmtrain.companions import is_whole, run_of
        from vlmtrain.model import locate

        if batch_size < 1:
            raise ConfigError(f"--batch-size is at least 1, got {batch_size}")
        if min(max_new_tokens.values()) < 1:
            raise ConfigError(f"an answer needs at least 1 new token, got {min(max_new_tokens.values())}")
        if answers not in ANSWERS:
            raise ConfigError(f"--answers is {answers!r}; valid: {', '.join(ANSWERS)}")
        run = run_of(adapter) if adapter else {}
        if merged and (adapter is None or is_whole(adapter)):
            raise ConfigError("--merged merges an adapter: give one by --adapter")
        if merged and quantize != "none":
            raise ConfigError(f"--merged adds the adapter to unrounded weights: leave out --quantize {quantize}")
        if adapter and is_whole(adapter):
            model, adapter = str(adapter), None
        if model:
            locate(model)
        self.model, self.adapter, self.images = model, adapter, images
        self.batch_size, self.max_new_tokens, self.prompt_suffix = batch_size, dict(max_new_tokens), prompt_suffix
        self.answers, self.merged = answers, merged
        self.options: dict[str, Any] = {"dtype": dtype, "quantize": quantize, "max_image_tokens": max_image_tokens}
        self.options["trust_remote_code"] = trust_remote_code
        self.device, self.device_map = device, spread(device_map, device)
        self.name = model or str(run.get("base"))
        self.pictures = Pictures(images)
        self.loaded: Loaded | None = None
        self._shelf: Shelf | None = None
        self._key: str | Path | None = None
        self._adapter: dict[str, Any] | None = None
        self._questions: Questions | None = None
        self._switch: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
        self._prefixes = prefixes.Prefixes(batch_size + 1)
        self._fitting = Fitting(batch_size, is_out_of_memory, self._prefixes.clear)
        self._share_prefix, self._verify_prefix = share_prefix, verify_prefix
        self._sharing: Sharing | None = None
        self._words: dict[tuple[str, ...], list[list[int]]] = {}
        self._cut: tuple[Sequence[Item], list[list[Item]]] | None = None

    def describe(self) -> dict[str, Any]:
        """Everything that can change an answer; more of it is known once the model is loaded."""
        if self._adapter is None:
            from vlmtrain.adapters import adapter_folder

            self._adapter = provenance.adapter_facts(adapter_folder(self.adapter) if self.adapter else None)
        known: dict[str, Any] = {
            "kind": "local",
            "model": self.name,
            "adapter": str(self.adapter) if self.adapter else None,
            **self._adapter,
            "merged": self.merged,
            "prompt_suffix": self.prompt_suffix,
            "answers": self.answers,
            "decoding": "greedy",
            "max_new_tokens": self.max_new_tokens,
            **{name: value for name, value in self.options.items() if name != "trust_remote_code"},
        }
        if (loaded := self.loaded) is None:
            return known
        known |= provenance.base_facts(loaded)
        return known if self.classifies else known | provenance.prompt_facts(loaded, self._encoder.prompt_format())

    def environment(self) -> dict[str, Any]:
        """What is not meant to change an answer, and yet may in the last digit: recorded, never compared."""
        return {
            "batch_size": self.batch_size,
            **({"batch_size_fits": fits} if (fits := self._fitting.fits) < self.batch_size else {}),
            **({"share_prefix": self._sharing.to_json()} if self._sharing else {}),
            "padding_side": "left",
            "ranking_padding_side": "right",
            "seed": _SEED,
            **(provenance.device_facts(self.loaded.model) if self.loaded else {"device": None}),
            "versions": provenance.versions(),
        }

    def load(self) -> None:
        """Load the model, unless it is.

        Raises:
            VlmError: it cannot be loaded; see ``vlmtrain.model.load``.
        """
        from vlmtrain.merge import fold
        from vlmtrain.model import load

        if self._shelf is not None:
            self.loaded, self._switch = self._shelf.take(self._key)
        elif self.loaded is None:
            where: dict[str, Any] = {"device": self.device, "device_map": self.device_map}
            loaded = load(self.model, self.adapter, **where, **self.options)
            if self.merged:
                loaded.model = fold(loaded)
            self.loaded = loaded

    def share(self, shelf: Shelf, key: str | Path | None) -> None:
        """Take the model from a shelf from now on, by its adapter there, None for the base."""
        self._shelf, self._key = shelf, key

    def release(self) -> None:
        """Let go of the model; it is loaded again when an answer is wanted."""
        self.loaded, self._questions, self._switch = None, None, contextlib.nullcontext
        self._prefixes.clear()

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        """Answer the items that are not done, batch by batch; items of one image stay near each other.

        An item that cannot be shown or does not fit into memory alone is a Response with an ``error``.

        Raises:
            ConfigError: the model cannot do what is asked, or not even the first item fits into memory.
        """
        self.load()
        self._check(items)
        computing.seed(_SEED)
        assert self.loaded is not None
        reader = self._reader(self.loaded)
        left = ([item for item in batch if item.id not in done] for batch in self.batches(items))
        jobs = (part for batch in left for part in pieces(batch, self._fitting.fits))
        for prepared in ahead(reader.prepare, jobs, self.loads_ahead):
            found = self._fitting.answered(prepared, reader.prepare, self._compute)
            if wanted := self._shared().checked(prepared.items):
                plain = functools.partial(self._compute, plain=True)
                self._shared().compare(found, self._fitting.answered(reader.plain(wanted), reader.plain, plain))
            yield found

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """How ``answer`` cuts the items, all of them, by their true lengths; the model must be loaded."""
        if self._cut is None or self._cut[0] is not items:
            sharing = self._shared()
            beginning = None if sharing.reason else self._encoder.beginning
            told = (self._alike, self._length, self._limit, beginning, self.prompt_suffix)
            self._cut = (items, sharing.cut(items, *told))
        return self._cut[1]

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
            DataError: an image cannot be read.
        """
        self.load()
        loaded = self.loaded
        assert loaded is not None
        pictures = [self.pictures.open(name) for name in images]
        if self.classifies:
            words = any(part["type"] == "text" for turn in turns for part in turn["content"])
            if words or len(pictures) != 1:
                raise ConfigError(f"{self.name} is an image classifier: show it one image, and ask nothing")
            (ranked,) = self._likeliest(loaded, loaded.processor(images=pictures, return_tensors="pt"))
            return "\n".join(f"{name}  {100 * probability:.1f} %" for name, probability in ranked), 0
        inputs = self._encoder.prompts([turns], [pictures])
        with self._switch():
            return computing.reply(loaded, inputs, generation, seed, stream)

    @property
    def classifies(self) -> bool:
        """Whether the model is an image classifier; it answers with the names of its likeliest classes, one a line."""
        return self.loaded is not None and self.loaded.family.task == "classify"

    @property
    def _encoder(self) -> Questions:
        from vlmtrain.questions import Questions

        assert self.loaded is not None
        if self._questions is None or self._questions.processor is not self.loaded.processor:
            self._questions = Questions(self.loaded)
        return self._questions

    def _check(self, items: Sequence[Item]) -> None:
        """Whether the model can do what is asked, before the first answer."""
        assert self.loaded is not None
        for item in items:
            if self.classifies and item.kind != "class":
                raise ConfigError(f"{self.name} is an image classifier: it answers vlmeval classify --decide words")
            if self._decides(item) and item.choices not in self._words:
                begun = self._encoder.first_tokens(item.choices)
                self._words[item.choices] = spellings(self.loaded.processor.tokenizer, item.choices, begun)

    def _decides(self, item: Item) -> bool:
        """Whether first-token probabilities are wanted of an item."""
        return self.answers != "generate" and bool(item.choices) and item.kind != "choice"

    def _alike(self, item: Item) -> Hashable:
        """What the items of one batch must agree in."""
        return item.kind, item.kind == "choice" and len(item.choices), self._decides(item) and item.choices

    def _length(self, item: Item) -> int:
        """Tokens of an item's prompt, those of its images known from their headers; 0 where that cannot be told."""
        if self.classifies:
            return 0
        sizes = [size for name in item.images if (size := self.pictures.size(name)) is not None]
        answers = item.choices if item.kind == "choice" else ()
        try:
            return self._encoder.length(turns_of(item, self.prompt_suffix), sizes, answers)
        except (VlmError, ValueError):
            return 0

    def _reader(self, loaded: Loaded) -> Reader:
        """What opens and encodes, in the thread that works ahead."""
        from vlmtrain.questions import Questions

        questions = None if self.classifies else Questions(loaded, own=self.loads_ahead > 0)
        reader = Reader(self.pictures, questions or loaded.processor, self.prompt_suffix, classifies=self.classifies)
        if questions is not None:
            grouped = PrefixReader(self.pictures, questions, self.prompt_suffix, self._prefixes.capacity)
            reader.share(grouped.prepare, self._shared().shares)
        return reader

    def _shared(self) -> Sharing:
        """Who reads images once for all their questions, or tells why nobody does."""
        from vlmtrain.lean.folded import branches_of, obstacle, window

        assert self.loaded is not None
        if self._sharing is None:
            model, family = self.loaded.model, self.loaded.family
            net = model.get_base_model() if hasattr(model, "get_base_model") else model
            reason = None if self._share_prefix else OFF
            reason = reason or obstacle(net, family) or prefixes.obstacle(model)
            given = (window(net), family.positions, self.batch_size, self._verify_prefix)
            self._sharing = Sharing(reason, self._prefixes, *given, None if reason else branches_of(net))
        return self._sharing

    def _limit(self, item: Item) -> int:
        return self.max_new_tokens["text" if item.kind == "text" else "answer"]

    def _compute(self, prepared: Prepared, *, plain: bool = False) -> list[Response]:
        from vlmtrain.questions import pixels_once

        self.load()
        assert self.loaded is not None
        first = prepared.items[0]
        if self.classifies:
            return computing.named(prepared, self._likeliest(self.loaded, prepared.inputs))
        with self._switch():
            if first.kind == "choice":
                return computing.chosen(self.loaded, prepared, pixels_once)
            words = self._words[first.choices] if self._decides(first) else None
            sharing, limit = self._shared(), self._limit(first)
            once = sharing.answered if sharing.shares(prepared.items) else computing.answered
            return (sharing.plainly if plain else once)(self.loaded, prepared, limit, words, self.answers)

    def _likeliest(self, loaded: Loaded, inputs: Any) -> list[list[tuple[str, float]]]:
        from vlmtrain.classifiers import classes

        with self._switch():
            return computing.likeliest(loaded, inputs, classes(loaded.model.config))


def several(
    model: str | None, adapters: Sequence[str | Path], with_base: bool, **options: Any
) -> list[tuple[str, Local]]:
    """Models that share one base in memory where they can; an adapter that cannot is loaded alone, and said so once.

    Args:
        model: the base; None takes the one the adapters name.
        adapters: run folders, those of full fine-tunings too, folders or hub ids of PEFT adapters.
        with_base: the base itself, without an adapter, is the first of them.
        options: of ``Local``, the same for all.

    Returns:
        For each, in the order given, a folder name that no other has, and the model. Ask one after the other: those
        that do not share take each other's place in memory.

    Raises:
        ConfigError: an adapter of another base, an adapter given twice, or options that cannot be.
        MissingError: a model or an adapter that is not there.
    """
    from vlmtrain.companions import agree, recorded_base
    from vlmtrain.model import base_name
    from vlmtrain.slots import Shelf

    names = folder_names(adapters, ("base",) if with_base else ())
    agree(model, adapters)
    found = [Local(model, adapter, **options) for adapter in adapters]
    if with_base:
        base = model or (recorded_base(adapters[0]) if adapters else base_name(None, None))
        found = [Local(base, None, **{**options, "merged": False}), *found]
        names = ["base", *names]
    if len(found) > 1:
        given = {**found[0].options, "device": found[0].device, "device_map": found[0].device_map}
        given["merged"] = bool(options.get("merged"))
        shelf = Shelf(model, adapters, lambda text: print(f"vlmeval: {text}", file=sys.stderr), **given)
        shelf.users = found
        for local, key in zip(found, [None, *adapters] if with_base else adapters, strict=True):
            local.share(shelf, key)
    return list(zip(names, found, strict=True))
