"""Several adapters on one base in memory, one of them switched on at a time; those that cannot share get their own.

There is never more than one base in memory: what is loaded alone takes the place of what was there before.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlmdata.errors import ConfigError
from vlmtrain.adapters import adapter_folder, add_adapter, check_base
from vlmtrain.companions import is_whole, obstacles, recorded_base
from vlmtrain.merge import fold
from vlmtrain.model import Loaded, load, quiet

__all__ = ["Shelf", "Switch", "User"]

Switch = Callable[[], contextlib.AbstractContextManager[Any]]


class User(Protocol):
    """Somebody who holds what a shelf gave."""

    def release(self) -> None:
        """Hold it no longer."""


class Shelf:
    """A base and its adapters, loaded when they are wanted.

    Attributes:
        loads: how often a base was loaded.
        users: whoever holds on to what is in memory; each is told to ``release`` it before it makes room.
    """

    def __init__(
        self,
        model: str | None,
        adapters: Sequence[str | Path],
        say: Callable[[str], None],
        *,
        merged: bool = False,
        **options: Any,
    ) -> None:
        """Nothing is looked at before the first model is wanted.

        Args:
            model: the base; None takes the one the adapters name.
            adapters: run folders, folders or hub ids of peft adapters.
            say: told once of each model that cannot share, and why.
            merged: adapters are added to the base's weights, so that each needs its own.
            options: of ``vlmtrain.model.load``.
        """
        self.loads = 0
        self.users: Sequence[User] = ()
        self._model, self._say, self._options, self._merged = model, say, options, merged
        self._adapters = [str(adapter) for adapter in adapters]
        self._reasons: dict[str | None, str] | None = None
        self._told: set[str | None] = set()
        self._shared: Loaded | None = None
        self._slots: dict[str, str] = {}
        self._alone: tuple[str | None, Loaded] | None = None

    def take(self, adapter: str | Path | None) -> tuple[Loaded, Switch]:
        """The base with one of its adapters, or without any.

        Returns:
            What is loaded, and what switches this adapter on, for all that is computed inside it.

        Raises:
            VlmError: it cannot be loaded; see ``vlmtrain.model.load``.
        """
        key = None if adapter is None else str(adapter)
        reasons = self._obstacles()
        sharing = [name for name in self._adapters if name not in reasons]
        if key not in reasons and sharing:
            if self._shared is None:
                self._shared = self._load(self._model, sharing[0])
                self._slots = {sharing[0]: "default"}
            net = self._shared.model
            if key is None:
                return self._shared, net.disable_adapter
            if key in self._slots or self._added(self._shared, key):
                return self._shared, lambda: _switched(net, self._slots[key])
        if self._alone is None or self._alone[0] != key:
            if key in reasons and key not in self._told:
                self._told.add(key)
                self._say(f"{key or 'the base'} does not share the weights of the base, {reasons[key]}: loaded alone")
            whole = key is not None and is_whole(key)
            self._alone = (key, self._load(key if whole else self._model, None if whole else key))
        return self._alone[1], contextlib.nullcontext

    def _obstacles(self) -> dict[str | None, str]:
        if self._reasons is None and self._merged:
            self._reasons = {name: "it is merged" for name in self._adapters}
        elif self._reasons is None:
            self._reasons = obstacles(self._model, self._adapters, self._options)
        return self._reasons

    def _load(self, model: str | None, adapter: str | None) -> Loaded:
        import torch

        self._shared, self._alone, self._slots = None, None, {}
        for user in self.users:
            user.release()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.loads += 1
        base = model if model is not None or adapter is not None else recorded_base(self._adapters[0])
        loaded = load(base, adapter, **self._options)
        if self._merged and adapter is not None:
            loaded.model = fold(loaded)
        return loaded

    def _added(self, shared: Loaded, key: str) -> bool:
        """Put an adapter beside the others; alone it will say better than here what is wrong with it."""
        folder, slot = adapter_folder(key), f"slot{len(self._slots)}"
        try:
            check_base(folder, shared.base, shared.base, shared.base_hash)
            with quiet():
                add_adapter(shared.model, folder, shared.base, shared.family, slot)
        except ConfigError as error:
            self._obstacles()[key] = str(error)
            return False
        self._slots[key] = slot
        return True


@contextlib.contextmanager
def _switched(net: Any, slot: str) -> Iterator[None]:
    if net.active_adapter != slot:
        net.set_adapter(slot, inference_mode=True)
    yield
