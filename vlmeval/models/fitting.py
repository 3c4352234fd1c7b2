"""Batches that do not fit into memory, in halves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from vlmdata.errors import ConfigError
from vlmeval.models import computing
from vlmeval.models.batching import pieces
from vlmeval.models.preparing import Prepared
from vlmeval.task import Item, Response

__all__ = ["Fitting"]


class Fitting:
    """How many items fit.

    Attributes:
        fits: as many as are tried; halved where they did not fit.
    """

    def __init__(self, size: int, out_of_memory: Callable[[Exception], bool], free: Callable[[], None]) -> None:
        """Nothing is known yet.

        Args:
            size: most items of a batch.
            out_of_memory: whether that is what an error says.
            free: lets go of what is kept between batches.
        """
        self.fits, self._out_of_memory, self._free, self._any = size, out_of_memory, free, False

    def answered(
        self,
        prepared: Prepared,
        prepare: Callable[[Sequence[Item]], Prepared],
        compute: Callable[[Prepared], list[Response]],
    ) -> list[Response]:
        """Answers of a batch, in halves of it where the whole does not fit.

        Raises:
            ConfigError: not even the first item that is asked fits.
        """
        items, _, failed = prepared
        if not items:
            return failed
        if len(items) <= self.fits:
            try:
                found = compute(prepared)
                self._any = True
                return [*found, *failed]
            except Exception as error:
                if not self._out_of_memory(error):
                    raise
            # Out of the handler, whose traceback would keep the batch in memory.
            self._free()
            computing.free()
            if len(items) == 1:
                return [self._too_large(items[0]), *failed]
            self.fits = max(1, len(items) // 2)
            print(f"vlmeval: out of memory with {len(items)} prompts: on with {self.fits}", file=sys.stderr)
        del prepared
        parts = [self.answered(prepare(part), prepare, compute) for part in pieces(items, self.fits)]
        return [response for part in parts for response in part] + failed

    def _too_large(self, item: Item) -> Response:
        hint = "lower --max-image-tokens or --max-new-tokens, or give --quantize 4bit or --dtype bfloat16"
        if not self._any:
            raise ConfigError(f"out of memory with a single prompt, item {item.id}: {hint}")
        return Response(item.id, None, error=f"out of memory with this prompt alone: {hint}")
