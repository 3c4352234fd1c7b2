"""Charts and bars as inline SVG: no script, colours from the page's style sheet, every mark with a title to read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vlmdata.terminal import harmless
from vlmeval.charts import Chart, Curve, Matrix, Scatter
from vlmeval.view import Cell, short

__all__ = ["bar", "draw"]

_LETTER = 6.3
_LONGEST = 24
_WIDTH, _HEIGHT = 420.0, 300.0
_LEFT, _RIGHT, _TOP, _FOOT = 52.0, 14.0, 12.0, 44.0


def draw(chart: Chart) -> str:
    """A chart as one ``<svg>``; names in it are escaped and on one line."""
    match chart:
        case Matrix():
            return _matrix(chart)
        case Curve():
            return _curve(chart)
        case Scatter():
            return _scatter(chart)


def bar(entry: Cell, ticks: Sequence[tuple[str, float]] = ()) -> str:
    """A percentage as a bar with its interval as a whisker; empty where there is none.

    Args:
        entry: the figure.
        ticks: (name, value) of what it is to be compared with: a thin line each.
    """
    if not entry.percent or entry.value is None:
        return ""
    parts = [
        '<rect class="track" width="100" height="8"/>',
        f'<rect class="fill" width="{_inside(entry.value):.2f}" height="8"/>',
    ]
    for name, value in ticks:
        parts.append(
            f'<path class="tick" d="M{_inside(value):.2f} 0V8"><title>{_text(f"{name} {value:g}")}</title></path>'
        )
    if entry.low is not None and entry.high is not None:
        low, high = _inside(entry.low), _inside(entry.high)
        parts.append(f'<path class="whisker" d="M{low:.2f} 4H{high:.2f}M{low:.2f} 1V7M{high:.2f} 1V7"/>')
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        + "".join(parts)
        + "</svg>"
    )


def _inside(value: float) -> float:
    return min(max(value, 0.0), 100.0)


def _text(text: str) -> str:
    return escape(harmless(text))


def _cut(text: str) -> str:
    text = harmless(text)
    return escape(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")


def _svg(kind: str, width: float, height: float, words: str, parts: Sequence[str], *, fixed: bool = False) -> str:
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"{size}'
    return f'<svg class="chart {kind}" {box} role="img" aria-label="{_text(words)}">{"".join(parts)}</svg>'


def _matrix(chart: Matrix) -> str:
    """A heat map, each row coloured by its shares: rare rows are as legible as frequent ones."""
    size = next((side for most, side in ((3, 62), (6, 48), (12, 38), (24, 26)) if len(chart.columns) <= most), 19)
    names = [
        _LETTER * min(max((len(harmless(name)) for name in side), default=0), _LONGEST) + 10
        for side in (chart.rows, chart.columns)
    ]
    # Names of columns are written upright where they are wider than a column.
    turned = names[1] > size
    left, top = names[0] + 20, (names[1] if turned else 20) + 22
    parts = [
        f'<text class="axis-name" x="{left + size * len(chart.columns) / 2:.1f}" y="13" text-anchor="middle">'
        f"{_text(chart.column_label)}</text>",
        f'<text class="axis-name" transform="translate(12 {top + size * len(chart.rows) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{_text(chart.row_label)}</text>',
    ]
    for place, name in enumerate(chart.columns):
        x, y = left + size * (place + 0.5), top - 6
        turn = f'transform="translate({x + 4:.1f} {y:.1f}) rotate(-90)"' if turned else f'x="{x:.1f}" y="{y:.1f}"'
        anchor = "start" if turned else "middle"
        parts.append(f'<text {turn} text-anchor="{anchor}">{_cut(name)}<title>{_text(name)}</title></text>')
    for place, (name, cells) in enumerate(zip(chart.rows, chart.cells, strict=True)):
        y = top + size * place
        parts.append(
            f'<text x="{left - 6:.1f}" y="{y + size / 2 + 4:.1f}" text-anchor="end">{_cut(name)}'
            f"<title>{_text(name)}</title></text>"
        )
        parts += _cells(chart, name, cells, left, y, size)
    width, height = left + size * len(chart.columns) + 4, top + size * len(chart.rows) + 4
    words = f"{chart.title}: {len(chart.rows)} by {len(chart.columns)}, {chart.row_label} by {chart.column_label}"
    return _svg("matrix", width, height, words, parts, fixed=True)


def _cells(chart: Matrix, name: str, cells: Sequence[float], left: float, y: float, size: float) -> list[str]:
    whole = sum(cells)
    parts = []
    for place, count in enumerate(cells):
        share = count / whole if whole else 0.0
        column = chart.columns[place]
        tip = f"{chart.row_label} {name}, {chart.column_label} {column}: {count:,g} of {whole:,g} ({100 * share:.1f} %)"
        x = left + size * place
        kind = "cell right" if name.casefold() == column.casefold() else "cell"
        number = (
            f'<text class="{"on" if share > 0.55 else "in"}" x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" '
            f'text-anchor="middle">{count:,g}</text>'
            if count and size > _LETTER * len(f"{count:,g}") + 2
            else ""
        )
        parts.append(
            f'<g class="{kind}" data-row="{_text(name)}" data-column="{_text(column)}"><title>{_text(tip)}</title>'
            f'<rect class="ground" x="{x:.1f}" y="{y:.1f}" width="{size - 1}" height="{size - 1}"/>'
            f'<rect class="heat" x="{x:.1f}" y="{y:.1f}" width="{size - 1}" height="{size - 1}" '
            f'fill-opacity="{share:.3f}"/>{number}</g>'
        )
    return parts


def _steps(low: float, high: float) -> list[float]:
    """Round numbers for an axis, about five, that hold both ends."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 4
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]


class _Axes:
    """The frame of a chart: where a value stands, and the lines and names around it."""

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        self.x, self.y = _steps(min(x), max(x)), _steps(min(y), max(y))

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[-1] - self.x[0])
        up = (y - self.y[0]) / (self.y[-1] - self.y[0])
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _FOOT - up * (_HEIGHT - _TOP - _FOOT)

    def frame(self, x_label: str, y_label: str) -> list[str]:
        parts = []
        for value in self.x:
            x, y = self.at(value, self.y[0])
            parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{y:.1f}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
        for value in self.y:
            x, y = self.at(self.x[0], value)
            parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{x - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle = (_TOP + _HEIGHT - _FOOT) / 2
        parts.append(
            f'<text class="axis-name" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">'
            f"{_text(x_label)}</text>"
            f'<text class="axis-name" transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">'
            f"{_text(y_label)}</text>"
        )
        return parts


def _curve(chart: Curve) -> str:
    points = [point for point in chart.points if all(map(math.isfinite, point))]
    if not points:
        return '<p class="soft">Nothing to draw.</p>'
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    if all(0 <= value <= 1 for value in (*xs, *ys)):
        xs, ys = [0.0, 1.0], [0.0, 1.0]
    axes = _Axes(xs, ys)
    parts = axes.frame(chart.x_label, chart.y_label)
    if chart.diagonal:
        low, high = max(axes.x[0], axes.y[0]), min(axes.x[-1], axes.y[-1])
        (x1, y1), (x2, y2) = axes.at(low, low), axes.at(high, high)
        parts.append(f'<path class="diagonal" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>')
    places = [axes.at(x, y) for x, y, _ in points]
    parts.append('<path class="line" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + '"/>')
    heaviest = max(weight for _, _, weight in points) or 1
    for (x, y), (left, up, weight) in zip(places, points, strict=True):
        radius = 2.5 + 6 * math.sqrt(max(weight, 0) / heaviest)
        tip = f"{chart.x_label} {left:.4g}, {chart.y_label} {up:.4g}, n {weight:,g}"
        parts.append(
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{_text(tip)}</title></circle>'
        )
    return _svg("curve", _WIDTH, _HEIGHT, f"{chart.title}: {chart.y_label} by {chart.x_label}", parts)


def _scatter(chart: Scatter) -> str:
    points = [point for point in chart.points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if not points:
        return '<p class="soft">Nothing to draw.</p>'
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    margins = [0.08 * (max(side) - min(side) or max(abs(side[0]), 1)) for side in (xs, ys)]
    axes = _Axes([min(xs) - margins[0], max(xs) + margins[0]], [min(ys) - margins[1], max(ys) + margins[1]])
    parts = axes.frame(chart.x_label, chart.y_label)
    places = [axes.at(point[0], point[1]) for point in points]
    taken = [(x - 6, y + 4, x + 6) for x, y in places]
    for across, up, name, own in sorted(points, key=lambda point: (not point[3], -point[1])):
        x, y = axes.at(across, up)
        tip = f"{name}: {chart.x_label} {short(across)}, {chart.y_label} {short(up)}"
        kind = "point own" if own else "point other"
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if own else 4.5}">'
            f"<title>{_text(tip)}</title></circle>"
        )
        parts.append(_named(name, x, y, own, taken))
    return _svg("scatter", _WIDTH, _HEIGHT, f"{chart.title}: {chart.y_label} by {chart.x_label}", parts)


def _named(name: str, x: float, y: float, own: bool, taken: list[tuple[float, float, float]]) -> str:
    """A point's name beside it, moved up or down where another name stands; left out where there is no room."""
    wide = _LETTER * min(len(harmless(name)), _LONGEST)
    ends = x + 9 + wide > _WIDTH - 2
    start = x - 9 - wide if ends else x + 9
    for shift in (0, -12, 12, -24, 24):
        place = y + 4 + shift
        clear = all(abs(place - b) >= 11 or start > c or start + wide < a for a, b, c in taken)
        if clear and _TOP < place < _HEIGHT - _FOOT + 4:
            taken.append((start, place, start + wide))
            return f'<text class="{"own" if own else ""}" x="{start:.1f}" y="{place:.1f}">{_cut(name)}</text>'
    return ""
