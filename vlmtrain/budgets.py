"""How many tokens an image takes, and how to make it fewer: what several model families have in common."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vlmdata.errors import ConfigError

__all__ = [
    "count_tiles",
    "first_that_fits",
    "least_error",
    "pixel_budget",
    "replaced_tokens",
    "tile_budget",
    "tile_grid",
]

Count = Callable[[int, int], int]


def pixel_budget(processor: Any, tokens: int, count: Count) -> None:
    """Qwen: the processor keeps an image's pixels between two bounds; a token is patch x merge pixels squared.

    It makes no side shorter than a token's edge. An image longer than ``tokens`` times its height therefore takes
    more than ``tokens``, up to the root of ``tokens`` times that ratio; row lengths are counted with what it takes.
    """
    images = processor.image_processor
    token = (images.patch_size * images.merge_size) ** 2
    least, most = images.size["shortest_edge"], images.size["longest_edge"]
    if most > tokens * token:
        most = tokens * token
        # Small images are made larger and rounded up, which must not pass the upper bound.
        least = least if 4 * least <= most else token
        images.size = type(images.size)(shortest_edge=least, longest_edge=most)


def tile_budget(processor: Any, tokens: int, count: Count) -> None:
    """Idefics3, SmolVLM: the longest edge that still fits, at worst one picture of the whole alone.

    Raises:
        ConfigError: that one takes more already.
    """
    images = processor.image_processor
    tile, size, split = images.max_image_size["longest_edge"], images.size, images.do_image_splitting
    longest = size["longest_edge"]
    edges = [longest, *(side * tile for side in range((longest - 1) // tile, 0, -1))] if split else []
    for edge in edges:
        images.size = type(size)(longest_edge=edge)
        # Nothing comes to more tiles than a square.
        if count(edge, edge) <= tokens:
            return
    images.size, images.do_image_splitting = size, False
    least = count(tile, tile)
    if least > tokens:
        images.do_image_splitting = split
        raise least_error(least, tokens)


def tile_grid(width: int, height: int, longest: int, tile: int, limit: int = 4096) -> tuple[int, int]:
    """Rows and columns of tiles Idefics3's and SmolVLM's image processors cut an image into; zeros for none.

    ``get_number_of_image_patches`` of both (transformers 5.23) leaves out that the second resize keeps the aspect
    ratio, and is wrong where the longest edge is no multiple of a tile.

    Args:
        width: of the image.
        height: of the image.
        longest: its longest edge is brought to this.
        tile: edge of a tile.
        limit: no edge is longer than this.
    """
    width, height = _with_longest(width, height, longest)
    if width >= height:
        height = max(1, height + height % 2)
    else:
        width = max(1, width + width % 2)
    if max(width, height) > limit:
        width, height = _with_longest(width, height, limit)
    width, height = _with_longest(width, height, math.ceil(max(width, height) / tile) * tile)
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    return (rows, columns) if rows * columns > 1 else (0, 0)


def count_tiles(processor: Any, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens of images of these widths and heights under Idefics3's and SmolVLM's processors."""
    images = processor.image_processor
    grids = [(0, 0)] * len(sizes)
    if images.do_image_splitting:
        edges = images.size["longest_edge"], images.max_image_size["longest_edge"]
        grids = [tile_grid(width, height, *edges) for width, height in sizes]
    return [_tiles_tokens(processor, *grid) for grid in grids]


def _with_longest(width: int, height: int, edge: int) -> tuple[int, int]:
    """The same operations as the image processors', so that both round alike."""
    ratio = width / height
    return (edge, max(1, int(edge / ratio))) if width >= height else (max(1, int(edge * ratio)), edge)


def replaced_tokens(processor: Any, image_inputs: dict[str, Any]) -> int:
    """Tokens of what the processor writes for the first image of its image processor's output."""
    text = processor.replace_image_token(image_inputs, 0)
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def first_that_fits(choices: Iterable[tuple[Any, int]], tokens: int) -> Any:
    """The first choice whose tokens are within the budget.

    Args:
        choices: (choice, tokens), the one with the most tokens first.
        tokens: the budget.

    Raises:
        ConfigError: none is.
    """
    needed = 0
    for choice, needed in choices:
        if needed <= tokens:
            return choice
    raise least_error(needed, tokens)


def least_error(least: int, tokens: int) -> ConfigError:
    """What to raise when an image takes more than the budget whatever is done."""
    return ConfigError(f"an image takes at least {least} tokens here; --max-image-tokens {tokens} is less")


@functools.lru_cache(maxsize=1024)
def _tiles_tokens(processor: Any, rows: int, columns: int) -> int:
    return replaced_tokens(processor, {"rows": [[rows]], "cols": [[columns]]})
