"""vlmeval with a scripted model, as a program of its own: what one process, or a launcher's, does when things happen.

The environment says what happens: RANK_THAT_DIES kills itself after its first batch, RANK_THAT_FAILS raises while it
answers, RANK_THAT_CANNOT_LOAD before; SLOW waits that many seconds at every batch, BIG makes answers long,
RANK_ELSEWHERE writes to a folder of its own, as if the disk were not shared.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

from scripted import Scripted

from vlmdata.errors import ConfigError
from vlmeval import log, opening, ranks
from vlmeval.cli import main
from vlmeval.task import Item, Response


def happens(what: str) -> bool:
    return os.environ.get(what) == str(ranks.rank())


class Played(Scripted):
    def load(self) -> None:
        if happens("RANK_THAT_CANNOT_LOAD"):
            raise ConfigError("the weights are not on this machine")

    def answer(self, items: Sequence[Item], done: Container[int | str] = ()) -> Iterator[list[Response]]:
        for batch in super().answer(items, done):
            if "BIG" in os.environ:
                batch = [replace(said, text=f"{said.text} {100 * chr(46)}") for said in batch]
            if happens("RANK_THAT_FAILS"):
                raise ConfigError("the accelerator fell over")
            yield batch
            if "ASKED" in os.environ:
                with Path(os.environ["ASKED"]).open("a") as file:
                    file.write("".join(f"{said.id}\n" for said in batch))
            if happens("RANK_THAT_DIES"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(float(os.environ.get("SLOW", "0")))


def opened(who: opening.Who, images: Path | None) -> Any:
    return Played(adapter=str(who.adapter))


def elsewhere(self: log.Log, init: Any, folder: Path, process: int | None) -> None:
    (folder / "elsewhere").mkdir()
    init(self, folder / "elsewhere", process)


if __name__ == "__main__":
    if happens("RANK_ELSEWHERE"):
        log.Log.__init__ = partialmethod(elsewhere, log.Log.__init__)  # type: ignore[assignment,method-assign]
    opening.Who.open = opened  # type: ignore[method-assign]
    main(sys.argv[1:], prog_name="vlmeval")
