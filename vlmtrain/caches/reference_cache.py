"""What a reference said of rows, kept for other runs: one file for all that is alike but for the rows.

A figure is known again if everything it depends on is the same. What holds for a whole run is the name of a folder
(:func:`context`): contents of base and adapter, bits and type of the weights, settings of processor and tokenizer,
versions of the libraries, kind of device, and what of the configuration changes what is computed. What belongs to a
row is its key (:func:`row_keys`): its texts as they were rendered, the bytes of its images and how much smaller they
are made, and what else the method says it looks at. Neither learning rate nor beta, epochs or rank are in either.

In which batch a row was is not: a figure that is found is the one that was computed, to the bit, and differs from
what another batch would give as figures of one batch differ from another's, by the rounding of sums in another
order. Where that is more than rounding, as in 8 bits, whose outliers are sought in the whole batch
(https://arxiv.org/abs/2208.07339), the rows of a batch are known together or not at all (:func:`by_batch`).

The file has a line for each batch, with a checksum: a line is whole or left out. It is written by one append, so that
any number of runs may write, and one that is killed loses the batch it was at. A row takes about 80 bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vlmdata.atomic import replacing, write_json
from vlmdata.errors import ConfigError
from vlmtrain.caches.content_hash import cache_folder, files_digest, folder_of, model_files

if TYPE_CHECKING:
    from vlmtrain.config import Config
    from vlmtrain.job import Job

__all__ = [
    "Figures",
    "Journal",
    "Shared",
    "by_batch",
    "check",
    "context",
    "describe",
    "open_shared",
    "row_keys",
    "together",
]

Figures = dict[str, tuple[float, ...]]
_LIMIT = 1 << 30
_NOT_KEPT = "reference log-probabilities are not kept for other runs"
_PACKAGES = ("torch", "transformers", "trl", "peft", "pillow", "torchvision", "bitsandbytes", "vlm-toolkit")
# Keys that change neither what the reference is nor how it is asked; others count where they are not the default.
_NOT_ITS = frozenset(
    "epochs max_steps batch_size accumulate auto_batch learning_rate schedule warmup min_learning_rate weight_decay "
    "max_grad_norm optimizer adam_beta1 adam_beta2 adam_epsilon gradient_checkpointing checkpoint_layers seed "
    "group_by_length group_by_image cache_vision cache_vision_gb workers eval_fraction eval_steps save_steps "
    "keep_checkpoints logging_steps "
    "model adapter dtype".split()
)


class Journal:
    """Figures in a file, a batch a line; whoever appends, what is read is whole."""

    def __init__(self, path: Path) -> None:
        """Keep them in ``path``; it need not be there."""
        self.path = path

    def read(self, wanted: Container[str] | None = None) -> tuple[Figures, int]:
        """Figures by key, the first of each; and how many lines were damaged, which are taken out of the file.

        Args:
            wanted: the keys to look for, as a file may hold more than there is memory for; None is all.
        """
        found: Figures = {}
        damaged = 0
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return found, damaged
        with file:
            for line in _lines(file):
                if not _is_whole(line):
                    damaged += 1
                    continue
                for key, figures in json.loads(line[17:]).items():
                    if wanted is None or key in wanted:
                        found.setdefault(key, tuple(figures))
            if damaged:
                file.seek(0)
                # What is appended at this very moment may be lost with the old file: it is computed again.
                with replacing(self.path) as temporary, temporary.open("wb") as other:
                    other.writelines(b"\n" + line + b"\n" for line in _lines(file) if _is_whole(line))
        return found, damaged

    def append(self, figures: Mapping[str, Sequence[float]]) -> None:
        """Add figures by key."""
        if not figures:
            return
        said = json.dumps({key: list(values) for key, values in figures.items()}).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        with os.fdopen(handle, "wb", buffering=0) as file:
            # The line before may have been cut short.
            file.write(b"\n" + _checksum(said) + b" " + said + b"\n")


class Shared:
    """The journal of one context in the user's cache folder; without a place to write, the run goes on without it."""

    def __init__(self, folder: Path, about: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Keep figures in ``folder``.

        Args:
            folder: where all contexts are.
            about: the context, from :func:`context`.
            say: tells the user a line.
        """
        self.about, self.say = about, say
        self.folder = folder / _digest(about)
        self.journal = Journal(self.folder / "logps.jsonl")
        self.works = True

    def find(self, keys: Iterable[str]) -> Figures:
        """Figures of those of the keys that are known."""
        order = list(keys)
        try:
            known, damaged = self.journal.read(frozenset(order))
            if damaged:
                self.say(f"reference lines that are damaged: {damaged:,}; their rows are computed again")
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / "about.json").is_file():
                write_json(self.folder / "about.json", self.about)
            # The time of its last use.
            os.utime(self.folder)
        except (OSError, ValueError) as error:
            self._fail(error)
            return {}
        # Another run may take away what is looked at here.
        with contextlib.suppress(OSError):
            _make_room(self.folder)
        return {key: known[key] for key in order if key in known}

    def add(self, figures: Mapping[str, Sequence[float]]) -> None:
        """Keep figures; one that is no number is not worth keeping."""
        if not self.works:
            return
        try:
            self.journal.append({key: one for key, one in figures.items() if all(map(math.isfinite, one))})
        except OSError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.works = False
        why = error.strerror if isinstance(error, OSError) else error
        self.say(f"{_NOT_KEPT}: {self.folder}: {why}")


def check(config: Config) -> None:
    """Refuse what can be seen to do nothing.

    Raises:
        ConfigError: figures of a live reference are to be kept.
    """
    group = config.preference or config.unpaired
    if group is not None and group.reference == "live" and group.reference_cache and "reference_cache" in config.asked:
        why = "with streaming it is asked live" if config.rows.streaming else "leave out reference=live"
        raise ConfigError(f"reference_cache keeps what the reference says before training: {why}")


def describe(trainer: Any, job: Job) -> dict[str, Any] | None:
    """The :func:`context` of a prepared job; None, and a word of why, where it cannot be had."""
    try:
        return context(trainer, job, cache_folder() / "weights")
    except (OSError, RuntimeError) as error:
        job.reporter.say(f"{_NOT_KEPT}: {error}")
        return None


def open_shared(about: Mapping[str, Any], say: Callable[[str], None]) -> Shared:
    """What is kept of a context in the user's cache folder."""
    return Shared(cache_folder() / "reference", about, say)


def context(trainer: Any, job: Job, memory: Path) -> dict[str, Any]:
    """What the figures of all rows of a run depend on, to be read by people, too.

    Args:
        trainer: behind ``TrainerSeam``; its arguments say under which autocast the reference is asked.
        job: what it was made from.
        memory: see :func:`vlmtrain.caches.content_hash.files_digest`.
    """
    import torch

    from vlmtrain.adapters import adapter_folder
    from vlmtrain.bases import locate
    from vlmtrain.model import base_name

    base, net, processor = job.config.base, trainer.net, job.loaded.processor
    digest = functools.partial(files_digest, memory=memory, say=job.reporter.say)
    group = job.config.preference or job.config.unpaired
    cast = [name for name in ("bf16", "fp16") if getattr(trainer.args, name)]
    return {
        "format": 1,
        "method": job.config.method,
        "base": digest(model_files(folder_of(locate(base_name(base.model, base.adapter))))),
        "adapter": digest(model_files(adapter_folder(base.adapter))) if base.adapter else None,
        "weights": str(net.dtype),
        "attention": net.config.get_text_config()._attn_implementation,
        "device": [job.device, cast, torch.get_float32_matmul_precision()],
        "settings": _changed(base) | _changed(job.config.training),
        "share_prefix": getattr(group, "share_prefix", None),
        "processor": _plain(processor.to_dict()),
        "tokenizer": _tokenizer(processor.tokenizer),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def row_keys(rows: Any, inputs: Any) -> list[str]:
    """The key of each row of a dataset.

    Args:
        rows: of :func:`vlmtrain.lengths.fit`.
        inputs: gives what the figures of a row, without its images, depend on besides these, as JSON takes it.
    """
    keys = []
    # Rows that are alike keep figures of their own: each has been in a batch of its own.
    seen: Counter[str] = Counter()
    texts = rows.remove_columns(["images"])
    for row, images in zip(texts, _image_digests(rows), strict=True):
        said = json.dumps([inputs(row), images, row.get("image_scale") or 1.0], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()[:32]
        keys.append(_digest([digest, seen[digest]]) if seen[digest] else digest)
        seen[digest] += 1
    return keys


def by_batch(net: Any) -> bool:
    """Whether what a model says of a row depends on the other rows by more than rounding."""
    quantization = getattr(net.config, "quantization_config", None)
    if quantization is None:
        return False
    given = quantization if isinstance(quantization, Mapping) else quantization.to_dict()
    return not given.get("load_in_4bit")


def together(keys: Sequence[str], training: bool) -> list[str]:
    """Keys of the rows of a batch that are known together or not at all.

    Args:
        keys: of the rows, in their order.
        training: the mode the model is in, by which an int8 product rounds.
    """
    whole = _digest([list(keys), training])
    return [_digest([key, whole]) for key in keys]


def _image_digests(rows: Any) -> Iterator[list[str]]:
    """Of each row the sha256 of its images' bytes, which are not copied for it."""
    for table in rows.select_columns(["images"]).with_format("arrow").iter(batch_size=64):
        for images in table["images"]:
            raw = [image["bytes"].as_buffer() for image in images] if images.is_valid else []
            yield [hashlib.sha256(one if one is not None else b"").hexdigest() for one in raw]


def _changed(group: Any) -> dict[str, Any]:
    """The keys of a group that count and are not the default, so that a new key changes nothing."""
    fields = [item for item in dataclasses.fields(group) if item.name not in _NOT_ITS]
    return {
        item.name: _plain(getattr(group, item.name)) for item in fields if getattr(group, item.name) != item.default
    }


def _tokenizer(tokenizer: Any) -> str:
    """Of a fast tokenizer all but how it pads and cuts, which is how it was last called."""
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {key: value for key, value in said.items() if key not in ("padding", "truncation")}
    return _digest([kept, str(tokenizer.special_tokens_map)])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not empty, without their ends."""
    return (line.removesuffix(b"\n") for line in file if line != b"\n")


def _is_whole(line: bytes) -> bool:
    return line[:16] == _checksum(line[17:])


def _checksum(said: bytes) -> bytes:
    return hashlib.sha256(said).hexdigest()[:16].encode()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _make_room(mine: Path) -> None:
    """Forget what was not used for longest, while all of it is more than a GiB: ten million rows or so."""
    folders = sorted((path for path in mine.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    size = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
    over = sum(size.values()) - _LIMIT
    for path in folders:
        if over <= 0:
            break
        if path != mine:
            shutil.rmtree(path, ignore_errors=True)
            over -= size[path]
