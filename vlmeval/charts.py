"""What a report can draw, as plain data: a task says what, the reports say how. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Chart", "Curve", "Matrix", "Scatter"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts of rows by columns: a confusion matrix.

    Attributes:
        title: above it.
        row_label: what a row is ("truth").
        column_label: what a column is ("answer").
        rows: names.
        columns: names.
        cells: a list of counts for each row.
    """

    title: str
    row_label: str
    column_label: str
    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in order, joined by a line: calibration.

    Attributes:
        title: above it.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        points: (x, y, weight): how much stands behind a point is shown as its size.
        diagonal: whether the line x = y is drawn to compare with.
    """

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float, float]]
    diagonal: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """Named points: one figure against another.

    Attributes:
        title: above it.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        points: (x, y, name, whether it is the one the report is about).
    """

    title: str
    x_label: str
    y_label: str
    points: Sequence[tuple[float, float, str, bool]]


Chart = Curve | Matrix | Scatter
