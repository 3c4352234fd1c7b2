"""Histograms as inline SVG: no script, colours from the page's style sheet, a tooltip on every bar."""

from __future__ import annotations

from html import escape

from vlmdata.histogram import Distribution, number

__all__ = ["histogram_svg"]

_WIDTH, _HEIGHT, _TOP, _FOOT = 320, 132, 6, 20
_LETTER = 6.5


def histogram_svg(spread: Distribution, title: str, unit: str) -> str:
    """A histogram with the median marked.

    Args:
        spread: what is drawn.
        title: for screen readers.
        unit: of the numbers; may be empty.
    """
    bins = list(spread.bins())
    most = max(found.count for found in bins)
    slot = _WIDTH / len(bins)
    floor = _HEIGHT - _FOOT
    parts = []
    for index, found in enumerate(bins):
        height = (floor - _TOP) * found.count / most
        if found.count:
            height = max(height, 1.5)
        share = 100 * found.count / spread.count
        tip = f"{found.label} {unit}".strip() + f": {found.count:,} ({share:.1f} %)"
        parts.append(
            f'<g class="bin"><title>{escape(tip)}</title>'
            f'<rect class="hit" x="{index * slot:.1f}" y="0" width="{slot:.1f}" height="{floor}"/>'
            f'<rect class="fill" x="{index * slot + 0.75:.1f}" y="{floor - height:.1f}" '
            f'width="{max(slot - 1.5, 1):.1f}" height="{height:.1f}" rx="1.5"/></g>'
        )
    parts.append(f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{floor}" y2="{floor}"/>')
    for place, anchor, text in _ticks([found.label for found in bins], slot):
        parts.append(f'<text x="{place:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{escape(text)}</text>')
    words = f"{title}: from {number(spread.min)} to {number(spread.max)} {unit}, median {number(spread.p50)}"
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(words)}">'
        + "".join(parts)
        + "</svg>"
    )


def _ticks(labels: list[str], slot: float) -> list[tuple[float, str, str]]:
    """Where a few labels stand: the first, the last, and the middle one where there is room."""
    if len(labels) == 1:
        return [(slot / 2, "middle", labels[0])]
    ends = [(0.0, "start", labels[0]), (slot * len(labels), "end", labels[-1])]
    if len(labels) <= 6 and max(map(len, labels)) * _LETTER < slot:
        return [(slot * (index + 0.5), "middle", label) for index, label in enumerate(labels)]
    middle = len(labels) // 2
    place, half = slot * (middle + 0.5), len(labels[middle]) / 2
    room = min(place / _LETTER - len(labels[0]), (slot * len(labels) - place) / _LETTER - len(labels[-1]))
    return [ends[0], (place, "middle", labels[middle]), ends[1]] if half + 1 < room else ends
