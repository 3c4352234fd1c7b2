"""Who answers: a model from the options of a command, everything that can be refused refused before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from vlmdata.errors import ConfigError, choices
from vlmeval import ranks
from vlmeval.model import Model

__all__ = ["ANSWERS", "KEYS", "Key", "Who", "keys_help"]

ANSWERS = ("generate", "logits", "both")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError
    return text == "yes"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of ``--set``.

    Attributes:
        kind: of model that it is for.
        read: its value from a text.
        expected: what the text must be.
        help: what it does.
        flag: of the commands that stands for it, where there is one; ``--set`` goes on taking the key.
    """

    kind: Literal["local", "endpoint"]
    read: Callable[[str], Any]
    expected: str
    help: str
    flag: str | None = None


KEYS: Mapping[str, Key] = {
    "concurrency": Key("endpoint", _positive, "a whole number from 1", "requests at a time [8]"),
    "retries": Key("endpoint", _count, "a whole number from 0", "further tries of a request [5]"),
    "timeout": Key("endpoint", _seconds, "seconds", "longest wait for an answer, in seconds [120]"),
    "key_env": Key("endpoint", str, "a name", "environment variable with the key [OPENAI_API_KEY]"),
    "max_image_side": Key("endpoint", _positive, "pixels", "longest side an image is sent with"),
    "device_map": Key("local", str, "auto, balanced or a JSON object", "how one model is spread over devices"),
    "share_prefix": Key("local", _yes_or_no, "yes or no", "an image is read once for all its questions [yes]"),
    "verify_prefix": Key(
        "local", _count, "a whole number from 0", "questions answered again without that [0]", "--verify-prefix"
    ),
}


def keys_help() -> str:
    """The keys that have no flag of their own in one sentence, for ``--help``."""
    kinds = {"endpoint": "With --endpoint", "local": "Local models"}
    said = []
    for kind, title in kinds.items():
        named = [f"{name} ({key.help})" for name, key in KEYS.items() if key.kind == kind and not key.flag]
        said.append(f"{title}: {', '.join(named)}.")
    return " ".join(said)


@dataclass(frozen=True, slots=True)
class Who:
    """Options of a model; see :func:`vlmeval.run.evaluate`. A default is what has no effect."""

    model: str | None = None
    adapter: str | Path | None = None
    endpoint: str | None = None
    batch_size: int = 8
    max_new_tokens: int = 256
    max_answer_tokens: int = 16
    prompt_suffix: str = ""
    answers: str = "generate"
    merged: bool = False
    dtype: str = "auto"
    quantize: str = "none"
    device: str | None = None
    max_image_tokens: int | None = None
    trust_remote_code: bool = False
    sets: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot work together, without importing anything heavy.

        Raises:
            ConfigError: it cannot.
        """
        if self.answers not in ANSWERS:
            raise ConfigError(f"--answers is {self.answers!r}; valid: {choices(ANSWERS)}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size is at least 1, got {self.batch_size}")
        if min(self.max_new_tokens, self.max_answer_tokens) < 1:
            raise ConfigError(f"an answer needs at least 1 new token, got {min(self._limits().values())}")
        if self.endpoint is not None:
            idle = [name for name in _LOCAL if getattr(self, name) != _default(name)]
            if idle:
                flag = f"--{idle[0].replace('_', '-')}"
                raise ConfigError(f"{flag} is for a model loaded here and has no effect with --endpoint: leave it out")
        elif self.merged and self.adapter is None:
            raise ConfigError("--merged merges an adapter into its base before asking: give --adapter")
        self._read_sets()

    def open(self, images: Path | None) -> Model:
        """The model, not loaded yet.

        Args:
            images: where the items' images are.

        Raises:
            VlmError: it cannot be had, as far as can be told now.
        """
        self.check()
        extra = self._read_sets()
        if self.endpoint is not None:
            from vlmeval.models.api import Api

            return Api(self.endpoint, self.model, **self._shared(images), **extra)
        from vlmeval.models.local import Local

        return Local(self.model, self.adapter, **self._local(images, extra))

    def several(
        self, adapters: Sequence[str | Path], images: Path | None, *, with_base: bool
    ) -> list[tuple[str, Model]]:
        """The base and adapters on it, which share one loaded base where they can.

        Args:
            adapters: run folders or PEFT adapters.
            images: where the items' images are.
            with_base: the base too, first.

        Returns:
            Folder name and model of each.
        """
        self.check()
        from vlmeval.models.local import several

        found: list[tuple[str, Model]] = [*several(
            self.model, adapters, with_base, **self._local(images, self._read_sets())
        )]
        return found

    def given(self) -> list[str]:
        """Names of the options that are not left at their defaults."""
        return [one.name for one in fields(self) if getattr(self, one.name) != _default(one.name)]

    def _limits(self) -> dict[str, int]:
        return {"answer": self.max_answer_tokens, "text": self.max_new_tokens}

    def _shared(self, images: Path | None) -> dict[str, Any]:
        return {
            "images": images,
            "max_new_tokens": self._limits(),
            "answers": self.answers,
            "prompt_suffix": self.prompt_suffix,
        }

    def _local(self, images: Path | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        device = ranks.device(self.device, extra.get("device_map"))
        names = ("batch_size", "merged", "dtype", "quantize", "max_image_tokens", "trust_remote_code")
        return {**self._shared(images), "device": device, **{name: getattr(self, name) for name in names}, **extra}

    def _read_sets(self) -> dict[str, Any]:
        kind = "local" if self.endpoint is None else "endpoint"
        found = {}
        for name, text in self.sets.items():
            key = KEYS.get(name)
            if key is None:
                raise ConfigError(f"--set {name}: no such key; valid: {choices(KEYS)}")
            if key.kind != kind:
                way = "with --endpoint" if key.kind == "endpoint" else "for a model loaded here"
                raise ConfigError(f"{key.flag or f'--set {name}'} has an effect only {way}: leave it out")
            try:
                found[name] = key.read(str(text))
            except ValueError:
                given = f"{key.flag} {text}" if key.flag else f"--set {name}={text}"
                raise ConfigError(f"{given}: expected {key.expected}") from None
        if found.get("verify_prefix") and not found.get("share_prefix", True):
            raise ConfigError("--verify-prefix compares with shared images: leave out --set share_prefix=no")
        return found


_LOCAL = (
    "adapter", "batch_size", "merged", "dtype", "quantize", "device", "max_image_tokens", "trust_remote_code",
)  # fmt: skip


def _default(name: str) -> Any:
    one = next(one for one in fields(Who) if one.name == name)
    return {} if one.name == "sets" else one.default
