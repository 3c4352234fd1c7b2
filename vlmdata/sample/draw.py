"""Pictures of scenes, drawn with Pillow."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from vlmdata.sample.world import Scene, Thing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageDraw import ImageDraw

__all__ = ["RGB", "draw_scene"]

RGB = {
    "red": (214, 40, 40),
    "yellow": (246, 208, 30),
    "green": (36, 140, 60),
    "blue": (36, 86, 214),
    "purple": (140, 60, 180),
    "black": (30, 30, 34),
}
_GROUND = {
    "grass": (176, 222, 150),
    "road": (176, 178, 184),
    "sand": (240, 222, 176),
    "water": (158, 210, 238),
    "wall": (244, 232, 238),
}
_LINE = (60, 60, 66)
_SKIN = (244, 206, 170)
_Box = tuple[float, float, float, float]
_Fill = tuple[int, int, int]


def draw_scene(scene: Scene, side: int = 192) -> Picture:
    """The scene as an RGB picture of ``side`` x ``side`` pixels."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (side, side), _GROUND[scene.ground])
    pen = ImageDraw.Draw(picture)
    rng = random.Random(scene.texture)
    _MARKS[scene.ground](pen, side, rng)
    if scene.busy:
        _speckle(pen, side, rng)
    # Lower things first, so that what stands on something is drawn over it.
    things = [thing for group in scene.groups for thing in group.things]
    for thing in sorted(things, key=lambda thing: -thing.bottom):
        _PENS[thing.kind](pen, _pixels(thing, side), RGB[thing.colour], thing)
    return picture


def _pixels(thing: Thing, side: int) -> _Box:
    return thing.left * side, thing.top * side, thing.right * side, thing.bottom * side


def _shade(colour: _Fill, factor: float) -> _Fill:
    r, g, b = (max(0, min(255, round(c * factor))) for c in colour)
    return r, g, b


def _at(box: _Box, *points: tuple[float, float]) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    return [(left + x * (right - left), top + y * (bottom - top)) for x, y in points]


def _inside(box: _Box, left: float, top: float, right: float, bottom: float) -> _Box:
    (x0, y0), (x1, y1) = _at(box, (left, top), (right, bottom))
    return x0, y0, x1, y1


def _grass(pen: ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(70):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        pen.line((x, y, x + rng.uniform(-2, 2), y - side / 40), fill=(120, 190, 100), width=2)


def _road(pen: ImageDraw, side: int, rng: random.Random) -> None:
    for row in (0.2, 0.55, 0.9):
        start = rng.uniform(-0.1, 0)
        for i in range(6):
            x = (start + i * 0.2) * side
            pen.rectangle((x, row * side, x + side * 0.1, row * side + side / 45), fill=(236, 236, 236))


def _sand(pen: ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(160):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        pen.ellipse((x, y, x + 2, y + 2), fill=(206, 180, 126))


def _water(pen: ImageDraw, side: int, rng: random.Random) -> None:
    for i in range(8):
        y = (i + rng.uniform(0.2, 0.8)) * side / 8
        points = [(x, y + 2.5 * math.sin(x / 7 + i)) for x in range(0, side + 4, 4)]
        pen.line(points, fill=(112, 172, 214), width=2)


def _wall(pen: ImageDraw, side: int, rng: random.Random) -> None:
    height = side / 8
    shift = rng.uniform(0, side / 4)
    for row in range(9):
        y = row * height
        pen.line((0, y, side, y), fill=(216, 190, 200), width=2)
        for column in range(-1, 6):
            x = shift + (column + (row % 2) / 2) * side / 4
            pen.line((x, y, x, y + height), fill=(216, 190, 200), width=2)


def _speckle(pen: ImageDraw, side: int, rng: random.Random) -> None:
    for _ in range(40):
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(1.0, 2.6)
        tone = rng.randrange(110, 250)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(tone, rng.randrange(110, 250), rng.randrange(110, 250)))


_MARKS: dict[str, Callable[[ImageDraw, int, random.Random], None]] = {
    "grass": _grass,
    "road": _road,
    "sand": _sand,
    "water": _water,
    "wall": _wall,
}


def _ball(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.ellipse(box, fill=colour, outline=_LINE, width=2)
    pen.ellipse(_inside(box, 0.22, 0.18, 0.45, 0.4), fill=(250, 250, 250))


def _boat(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.polygon(_at(box, (0, 0.66), (1, 0.66), (0.8, 1), (0.2, 1)), fill=colour, outline=_LINE)
    pen.line(_at(box, (0.48, 0), (0.48, 0.66)), fill=_LINE, width=3)
    pen.polygon(_at(box, (0.54, 0.02), (0.54, 0.58), (0.95, 0.58)), fill=(250, 250, 250), outline=_LINE)


def _box(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.rectangle(box, fill=colour, outline=_LINE, width=2)
    tape = (224, 190, 140)
    pen.rectangle(_inside(box, 0.42, 0, 0.58, 1), fill=tape)
    pen.rectangle(_inside(box, 0, 0.42, 1, 0.58), fill=tape)


def _car(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.polygon(_at(box, (0.2, 0.4), (0.32, 0), (0.7, 0), (0.84, 0.4)), fill=(206, 232, 246), outline=_LINE)
    pen.rectangle(_inside(box, 0, 0.36, 1, 0.8), fill=colour, outline=_LINE)
    for x in (0.14, 0.62):
        pen.ellipse(_inside(box, x, 0.6, x + 0.25, 1), fill=(40, 40, 40), outline=(220, 220, 220))


def _cup(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.arc(_inside(box, 0.5, 0.2, 1, 0.75), 270, 90, fill=colour, width=max(3, int((box[2] - box[0]) / 8)))
    pen.polygon(_at(box, (0, 0.08), (0.74, 0.08), (0.62, 1), (0.12, 1)), fill=colour, outline=_LINE)
    pen.ellipse(_inside(box, 0, 0, 0.74, 0.18), fill=(252, 252, 252), outline=_LINE)


def _flower(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.line(_at(box, (0.5, 0.4), (0.5, 1)), fill=(30, 110, 40), width=4)
    pen.polygon(_at(box, (0.5, 0.9), (0.85, 0.68), (0.72, 0.92)), fill=(30, 110, 40))
    for i in range(6):
        x, y = 0.5 + 0.26 * math.cos(i * math.pi / 3), 0.34 + 0.22 * math.sin(i * math.pi / 3)
        pen.ellipse(_inside(box, x - 0.17, y - 0.14, x + 0.17, y + 0.14), fill=colour)
    pen.ellipse(_inside(box, 0.37, 0.22, 0.63, 0.46), fill=(252, 240, 200), outline=_LINE)


def _house(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.rectangle(_inside(box, 0.08, 0.42, 0.92, 1), fill=(250, 244, 230), outline=_LINE)
    pen.polygon(_at(box, (0, 0.46), (0.5, 0), (1, 0.46)), fill=colour, outline=_LINE)
    pen.rectangle(_inside(box, 0.4, 0.62, 0.62, 1), fill=colour, outline=_LINE)


def _star(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    points = []
    for i in range(10):
        radius = 0.5 if i % 2 == 0 else 0.21
        angle = -math.pi / 2 + i * math.pi / 5
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    pen.polygon(_at(box, *points), fill=colour, outline=_LINE)


def _tree(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    pen.rectangle(_inside(box, 0.4, 0.6, 0.6, 1), fill=(122, 84, 48))
    for top, width in ((0.3, 0.5), (0.0, 0.34)):
        crown = _at(box, (0.5, top), (0.5 - width, top + 0.46), (0.5 + width, top + 0.46))
        pen.polygon(crown, fill=colour, outline=_LINE)


def _bird(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    if thing.action == "fly":
        pen.polygon(_at(box, (0, 0), (0.36, 0.4), (0.62, 0.62), (0.36, 0.66)), fill=colour, outline=_LINE)
        pen.polygon(_at(box, (1, 0), (0.66, 0.4), (0.4, 0.62), (0.66, 0.66)), fill=colour, outline=_LINE)
        pen.ellipse(_inside(box, 0.32, 0.46, 0.7, 1), fill=colour, outline=_LINE)
        pen.polygon(_at(box, (0.44, 0.76), (0.58, 0.76), (0.51, 0.95)), fill=(250, 150, 30))
        return
    for x in (0.42, 0.56):
        pen.line(_at(box, (x, 0.74), (x, 1)), fill=(240, 130, 20), width=3)
    pen.polygon(_at(box, (0, 0.44), (0.3, 0.5), (0.26, 0.68)), fill=colour, outline=_LINE)
    pen.ellipse(_inside(box, 0.16, 0.34, 0.8, 0.8), fill=colour, outline=_LINE)
    pen.ellipse(_inside(box, 0.54, 0.04, 0.9, 0.44), fill=colour, outline=_LINE)
    pen.polygon(_at(box, (0.88, 0.18), (1, 0.27), (0.86, 0.34)), fill=(250, 150, 30))
    pen.ellipse(_inside(box, 0.68, 0.14, 0.76, 0.24), fill=(255, 255, 255))


def _cat(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    if thing.action == "sleep":
        pen.ellipse(_inside(box, 0.12, 0.46, 1, 1), fill=colour, outline=_LINE)
        head = _inside(box, 0, 0.5, 0.46, 1)
        pen.arc(_inside(box, 0.5, 0.56, 0.96, 0.96), 0, 180, fill=_shade(colour, 0.6), width=3)
    else:
        tail = _at(box, (0.7, 0.94), (0.97, 0.86), (0.95, 0.46))
        pen.line(tail, fill=colour, width=max(3, int((box[2] - box[0]) / 9)))
        pen.polygon(_at(box, (0.36, 0.4), (0.64, 0.4), (0.84, 1), (0.16, 1)), fill=colour, outline=_LINE)
        head = _inside(box, 0.22, 0.08, 0.78, 0.56)
    for x, tip in ((0.02, 0.08), (0.62, 0.92)):
        pen.polygon(_at(head, (x, 0.35), (tip, -0.16), (x + 0.36, 0.2)), fill=colour, outline=_LINE)
    pen.ellipse(head, fill=colour, outline=_LINE)
    for x in (0.26, 0.6):
        if thing.action == "sleep":
            pen.line(_at(head, (x, 0.5), (x + 0.16, 0.5)), fill=(255, 255, 255), width=2)
        else:
            pen.ellipse(_inside(head, x, 0.36, x + 0.16, 0.58), fill=(255, 255, 255))


def _person(pen: ImageDraw, box: _Box, colour: _Fill, thing: Thing) -> None:
    limb = max(4, int((box[2] - box[0]) / 7))
    trousers = (90, 80, 70)
    if thing.action == "jump":
        limbs = (((0.4, 0.4), (0.0, 0.08)), ((0.6, 0.4), (1.0, 0.08)))
        legs = (((0.42, 0.66), (0.04, 0.96)), ((0.58, 0.66), (0.96, 0.96)))
    else:
        limbs = (((0.36, 0.4), (0.2, 0.68)), ((0.64, 0.4), (0.8, 0.68)))
        legs = (((0.44, 0.66), (0.42, 1.0)), ((0.56, 0.66), (0.58, 1.0)))
    for ends in legs:
        pen.line(_at(box, *ends), fill=trousers, width=limb)
    for ends in limbs:
        pen.line(_at(box, *ends), fill=colour, width=limb)
    pen.rectangle(_inside(box, 0.34, 0.32, 0.66, 0.72), fill=colour, outline=_LINE)
    pen.ellipse(_inside(box, 0.33, 0.02, 0.67, 0.32), fill=_SKIN, outline=_LINE)


_PENS: dict[str, Callable[[ImageDraw, _Box, _Fill, Thing], None]] = {
    "ball": _ball,
    "boat": _boat,
    "box": _box,
    "car": _car,
    "cup": _cup,
    "flower": _flower,
    "house": _house,
    "star": _star,
    "tree": _tree,
    "bird": _bird,
    "cat": _cat,
    "person": _person,
}
