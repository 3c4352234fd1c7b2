"""More than one process: ``torchrun -m vlmtrain ...`` and ``accelerate launch -m vlmtrain ...`` work unchanged.

Every process opens the data, counts and orders the rows alike; accelerate gives each its share of every step's rows, so
that a step has the rows one process with the same global batch would have. The first process alone looks at the run
folder, writes to it and speaks. The others hear from it what it found, its errors too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from vlmdata.errors import VlmError

__all__ = ["begin", "first", "gathered", "is_first", "rank", "speaks", "world"]

T = TypeVar("T")


def world() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def begin() -> None:
    """Join the other processes, each on its own device; nothing happens in a single process."""
    if world() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())


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
    dist.broadcast_object_list(box, src=0)
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
    dist.all_gather_object(found, value)
    return found


def speaks(text: str) -> bool:
    """Whether it is this process's turn to tell the user of an error: the first one that has this error tells it.

    The launcher keeps a store for its processes; where it is gone, each tells its own.
    """
    if world() == 1:
        return True
    import torch.distributed as dist

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = f"vlmtrain/{attempt}/{hashlib.sha256(text.encode()).hexdigest()}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10)
        )
        return bool(store.add(key, 1) == 1)
    except (KeyError, ValueError, RuntimeError):
        return True
