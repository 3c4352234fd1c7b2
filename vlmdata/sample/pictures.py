"""Pictures of the sample world that are no scenes: dishes for classification, metal plates for reading."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw

__all__ = ["DISHES", "draw_dish", "draw_plate", "jpeg", "plate_fields"]

_Point = tuple[float, float]
_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


def jpeg(picture: Picture) -> bytes:
    """The picture as JPEG bytes, quality 92."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def draw_dish(name: str, rng: random.Random, side: int = 192) -> Picture:
    """One dish of ``DISHES`` on a plate, RGB, ``side`` x ``side`` pixels."""
    from PIL import Image, ImageDraw

    tone = rng.randrange(150, 225)
    picture = Image.new("RGB", (side, side), (tone, rng.randrange(150, 225), rng.randrange(140, 215)))
    pen = ImageDraw.Draw(picture)
    x, y = side * rng.uniform(0.44, 0.56), side * rng.uniform(0.44, 0.56)
    _disc(pen, (x, y), side * 0.43, (250, 250, 246), (190, 190, 186))
    _DISHES[name](pen, (x, y), side * rng.uniform(0.24, 0.32), rng)
    return picture


def _disc(
    pen: ImageDraw,
    middle: _Point,
    radius: float,
    fill: tuple[int, int, int],
    line: tuple[int, int, int] | None = None,
) -> None:
    (x, y), r = middle, radius
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=line, width=2)


def _around(middle: _Point, radius: float, rng: random.Random) -> _Point:
    angle, r = rng.uniform(0, 2 * math.pi), radius * math.sqrt(rng.random())
    return middle[0] + r * math.cos(angle), middle[1] + r * math.sin(angle)


def _donuts(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    _disc(pen, middle, radius, (206, 150, 90), (150, 100, 50))
    _disc(pen, middle, radius * 0.85, rng.choice([(240, 130, 170), (110, 66, 40)]))
    for _ in range(16):
        _disc(pen, _around(middle, radius * 0.8, rng), 3, rng.choice([(255, 240, 120), (120, 200, 250)]))
    _disc(pen, middle, radius * 0.32, (250, 250, 246), (150, 100, 50))


def _hamburger(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    x, y = middle
    bun, salad, meat = (212, 150, 76), (80, 170, 70), (110, 60, 36)
    layers = ((bun, -0.7, -0.1), (salad, -0.12, 0.06), (meat, 0.05, 0.3), (bun, 0.3, 0.62))
    for colour, top, bottom in layers:
        box = (x - radius, y + top * radius, x + radius, y + bottom * radius)
        pen.rounded_rectangle(box, radius * (0.5 if top == -0.7 else 0.14), fill=colour)
    for _ in range(9):
        _disc(pen, (x + rng.uniform(-0.7, 0.7) * radius, y + rng.uniform(-0.6, -0.25) * radius), 2.5, (250, 236, 200))


def _ice_cream(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    x, y = middle
    pen.polygon([(x - radius * 0.6, y), (x + radius * 0.6, y), (x, y + radius * 1.2)], fill=(222, 170, 100))
    for dx, dy in ((-0.3, -0.2), (0.3, -0.2), (0, -0.6)):
        scoop = rng.choice([(250, 226, 190), (244, 160, 180), (150, 96, 62), (190, 230, 180)])
        _disc(pen, (x + dx * radius, y + dy * radius), radius * 0.46, scoop, (160, 130, 110))


def _pizza(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    _disc(pen, middle, radius * 1.15, (206, 146, 70), (150, 96, 40))
    _disc(pen, middle, radius, (250, 206, 90))
    for _ in range(7):
        _disc(pen, _around(middle, radius * 0.8, rng), radius * 0.15, (196, 50, 40))
    for i in range(4):
        dx, dy = radius * 1.15 * math.cos(i * math.pi / 4), radius * 1.15 * math.sin(i * math.pi / 4)
        pen.line((middle[0] - dx, middle[1] - dy, middle[0] + dx, middle[1] + dy), fill=(160, 110, 50), width=2)


def _sushi(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    for dx, dy in ((-0.55, -0.4), (0.55, -0.4), (-0.55, 0.5), (0.55, 0.5)):
        at = (middle[0] + dx * radius, middle[1] + dy * radius)
        _disc(pen, at, radius * 0.46, (26, 40, 34))
        _disc(pen, at, radius * 0.36, (248, 248, 244))
        _disc(pen, at, radius * 0.15, rng.choice([(244, 130, 90), (90, 170, 80)]))


def _waffles(pen: ImageDraw, middle: _Point, radius: float, rng: random.Random) -> None:
    x, y = middle
    box = (x - radius, y - radius, x + radius, y + radius)
    pen.rounded_rectangle(box, 8, fill=(224, 170, 84), outline=(160, 106, 40))
    for i in range(1, 5):
        at = -radius + i * radius * 2 / 5
        pen.line((x + at, y - radius, x + at, y + radius), fill=(176, 120, 50), width=4)
        pen.line((x - radius, y + at, x + radius, y + at), fill=(176, 120, 50), width=4)
    _disc(pen, _around(middle, radius * 0.3, rng), radius * 0.26, (255, 240, 170))


_DISHES: Mapping[str, Callable[[ImageDraw, _Point, float, random.Random], None]] = {
    "donuts": _donuts,
    "hamburger": _hamburger,
    "ice_cream": _ice_cream,
    "pizza": _pizza,
    "sushi": _sushi,
    "waffles": _waffles,
}
DISHES = tuple(_DISHES)


def plate_fields(rng: random.Random) -> dict[str, str]:
    """What is stamped on a vehicle's plate."""

    def code(pattern: str) -> str:
        return "".join(rng.choice(_LETTERS) if c == "A" else str(rng.randrange(10)) if c == "0" else c for c in pattern)

    model = f"{rng.choice(('TRX', 'HDL', 'VOR', 'KST'))} {rng.randrange(100, 990)}{rng.choice(('', 'D', 'GT'))}"
    return {"Vehicle Sr No": code("AA0AA00000000"), "Engine No": code("0A00-000000"), "Model": model}


def draw_plate(fields: Mapping[str, str], rng: random.Random) -> Picture:
    """A worn metal plate with the fields on it, RGB, 420 x 220 pixels, slightly turned."""
    from PIL import Image, ImageDraw, ImageFont

    steel = rng.randrange(176, 214)
    picture = Image.new("RGB", (420, 220), (steel, steel, steel + 6))
    pen = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = rng.uniform(0, 420), rng.uniform(0, 220)
        pen.line((x, y, x + rng.uniform(5, 50), y + rng.uniform(-2, 2)), fill=(steel - rng.randrange(5, 20),) * 3)
    pen.rounded_rectangle((8, 8, 411, 211), 14, outline=(70, 70, 76), width=4)
    for x, y in ((24, 24), (396, 24), (24, 196), (396, 196)):
        _disc(pen, (x, y), 7, (120, 120, 126), (60, 60, 66))
    label, value = ImageFont.load_default(15), ImageFont.load_default(26)
    for i, (name, text) in enumerate(fields.items()):
        pen.text((48, 26 + i * 58), name.upper(), fill=(70, 70, 80), font=label)
        pen.text((48, 44 + i * 58), text, fill=(24, 24, 30), font=value)
    return picture.rotate(rng.uniform(-3, 3), resample=Image.Resampling.BICUBIC, fillcolor=(86, 88, 92))
