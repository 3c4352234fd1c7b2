"""Several processes on one evaluation: ``torchrun -m vlmeval ...`` and ``accelerate launch -m vlmeval ...``.

Every process opens the data alike and loads the model on its own device. The batches are those one process would cut;
each process answers its share of them, so the answers are the same. The first process alone looks at the evaluation
folder, writes the record and the reports, and speaks; the others hear from it what it found, its errors too.

Waiting has no limit of minutes: one process may still be answering long after another is done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from vlmdata.errors import ConfigError, VlmError
from vlmeval.model import Batched, Model
from vlmeval.task import Item

__all__ = ["Share", "alike", "device", "first", "gathered", "is_first", "rank", "share", "speaks", "together", "world"]

T = TypeVar("T")
_PATIENCE = timedelta(days=7)
_group: list[Any] = []


def world() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Inside, the processes can speak to each other; nothing happens in a single process."""
    if world() == 1 or _group:
        yield
        return
    import torch.distributed as dist

    # gloo alone passes Python objects between processes that may have no accelerator.
    made = not dist.is_initialized()
    if made:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    _group.append(None if made else dist.new_group(backend="gloo", timeout=_PATIENCE))
    try:
        yield
    finally:
        _group.clear()
        if made:
            dist.destroy_process_group()


def first(make: Callable[[], T]) -> T:
    """What ``make`` gives in the first process, in all of them.

    Raises:
        VlmError: what it raised there, in all of them.
    """
    if world() == 1:
        return make()
    import torch.distributed as dist

    box: list[Any] = [None, None]
    if is_first():
        try:
            box[0] = make()
        except VlmError as error:
            box[1] = error
    with _company():
        dist.broadcast_object_list(box, src=0, group=_group[0])
    if box[1] is not None:
        raise box[1]
    made: T = box[0]
    return made


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order, in each of them."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    with _company():
        dist.all_gather_object(found, value, group=_group[0])
    return found


@contextmanager
def _company() -> Iterator[None]:
    """Say in one line that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise VlmError(
            "another process of this run has ended, and said why if it could; --resume goes on from what was answered"
        ) from error


def alike(make: Callable[[], T]) -> T:
    """What each process makes for itself, once all have made it.

    Raises:
        VlmError: what it raised in this process, or else in the first one that it failed in.
    """
    if world() == 1:
        return make()
    made: Any = None
    failed: VlmError | None = None
    try:
        made = make()
    except VlmError as error:
        failed = error
    errors = [error for error in gathered(failed) if error is not None]
    if errors:
        raise failed or errors[0]
    result: T = made
    return result


class Share(Container[int | str]):
    """The ids that this process does not ask: answered before, or another process's."""

    def __init__(self, mine: set[int | str]) -> None:
        """Keep what this process asks."""
        self.mine = mine

    def __contains__(self, ident: object) -> bool:
        """Whether it is not this process's to ask."""
        return ident not in self.mine


def share(model: Model, items: Sequence[Item], done: Container[int | str]) -> Share:
    """This process's part of what is not done, dealt out in turn in the batches that one process would cut.

    Args:
        model: loaded, and the same in every process. One that asks each item alone has those of an image asked by one
            process.
        items: all that is asked.
        done: ids that are answered or are not to be asked.
    """
    if isinstance(model, Batched):
        batches = model.batches(items)
    else:
        together: dict[str, list[Item]] = {}
        for item in items:
            together.setdefault(item.cluster, []).append(item)
        batches = list(together.values())
    todo = [wanted for batch in batches if (wanted := [item.id for item in batch if item.id not in done])]
    return Share({ident for batch in todo[rank() :: world()] for ident in batch})


def device(given: str | None, device_map: str | None) -> str | None:
    """Where this process's model is to be: of several processes, each has the accelerator of its number.

    Raises:
        ConfigError: a device map, which spreads one model over all of them, or one device for all.
    """
    if world() == 1:
        return given
    if device_map is not None:
        raise ConfigError("several processes each have a whole model on a device of their own: leave device_map out")
    if given is not None and given.partition(":")[0] == "cpu":
        return given
    if given is not None and ":" in given:
        raise ConfigError(f"--device {given} is one device for {world()} processes: leave it out, or give its kind")
    import torch

    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if not count:
        return given
    if number >= count:
        raise ConfigError(f"process {number} of this machine has no GPU of its own: there are {count}")
    return f"cuda:{number}"


def speaks(text: str) -> bool:
    """Whether this process is the one to tell the user of an error: the first one that has this error.

    The launcher keeps a store for its processes; where there is none, or it cannot be asked, each tells its own.
    """
    if world() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    import torch.distributed as dist

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"vlmeval/{attempt}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
        )
        return bool(store.add(key, 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True
