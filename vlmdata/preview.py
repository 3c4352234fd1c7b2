"""One self-contained HTML page of a converted dataset: rows, rejects, numbers and where it comes from.

The page loads nothing: its policy forbids every address, and of scripts only its own, named by hash, runs. What the
data brings reaches it as JSON that cannot leave its script element, and is shown as text, never as markup.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdata.atomic import replacing
from vlmdata.errors import ConfigError
from vlmdata.findings import findings
from vlmdata.gallery_rows import Pictures, choose, rejects, rows
from vlmdata.page_script import digest, script_json
from vlmdata.report_file import check_file
from vlmdata.shards import Shards
from vlmdata.stats import MEASURES, Stats, collect

__all__ = ["Gallery", "MOST_ROWS", "SIDES", "preview", "script_json"]

MOST_ROWS = 5000
"""Rows one page may show; browsers grow slow with more."""

SIDES = (64, 1024)
"""Smallest and largest side of thumbnails, in pixels."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """A page that was written.

    Attributes:
        path: the file.
        rows: how many rows it shows.
        records: how many there are.
        rejects: how many rejected rows it shows.
        bytes: its size.
    """

    path: Path
    rows: int
    records: int
    rejects: int
    bytes: int


def preview(
    shards: Shards,
    out: Path,
    *,
    count: int = 200,
    seed: int = 0,
    side: int = 320,
    overwrite: bool = False,
    report: Callable[[int], None] = lambda rows: None,
) -> Gallery:
    """Write the page. The same dataset and options give the same bytes.

    Args:
        shards: the dataset.
        out: the file to write.
        count: rows to show, spread over the whole dataset, and as many rejected ones.
        seed: chooses which.
        side: largest side of the thumbnails, in pixels.
        overwrite: replace ``out`` if it is there.
        report: told how many rows more have been counted for the numbers.

    Raises:
        ConfigError: an option is out of range, or ``out`` cannot be written.
        OutputExistsError: ``out`` is there already.
        DataError: the dataset cannot be read.
    """
    if not 1 <= count <= MOST_ROWS:
        raise ConfigError(f"--rows is {count}, expected 1 to {MOST_ROWS:,}")
    if not SIDES[0] <= side <= SIDES[1]:
        raise ConfigError(f"--thumbnail is {side}, expected {SIDES[0]} to {SIDES[1]} pixels")
    check_file(out, "--out", overwrite=overwrite)
    numbers = collect([shards], report)
    pictures = Pictures(side)
    shown = rows(shards, choose(len(shards), count, seed), pictures)
    bad = rejects(shards, count, pictures)
    data = {"kind": shards.kind, "total": len(shards), "rows": shown, "rejects": bad, "pictures": pictures.urls}
    page = _page(shards, numbers, data)
    with replacing(out) as temporary:
        temporary.write_bytes(page)
    return Gallery(out, len(shown), len(shards), len(bad), len(page))


def _page(shards: Shards, stats: Stats, data: Mapping[str, Any]) -> bytes:
    import jinja2

    from vlmdata.charts import histogram_svg
    from vlmdata.histogram import compact, number
    from vlmdata.licences import non_commercial

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlmdata"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"compact": compact, "number": number, "grouped": "{:,}".format}
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:,.1f} MB"
    read = environment.loader.get_source  # type: ignore[union-attr]
    style, script = (read(environment, name)[0] for name in ("preview.css", "preview.js"))
    charts = [
        (MEASURES[name], spread, histogram_svg(spread, MEASURES[name].title, MEASURES[name].unit))
        for name, spread in stats.distributions.items()
    ]
    page = environment.get_template("preview.html").render(
        name=shards.path.resolve().name,
        manifest=shards.manifest,
        stats=stats,
        findings=findings(stats),
        charts=[chart for chart in charts if chart[1].min != chart[1].max],
        constants=[chart for chart in charts if chart[1].min == chart[1].max],
        bars=_bars(stats),
        non_commercial=non_commercial(shards.manifest.licence),
        shown=len(data["rows"]),
        shown_rejects=len(data["rejects"]),
        options={name: _option(value) for name, value in shards.manifest.options.items()},
        style=style,
        script=script,
        digest=digest(script).removeprefix("sha256-"),
        data=script_json(data),
    )
    # A lone surrogate that JSON brought would be no UTF-8; spelled out it is valid JSON again.
    return page.encode("utf-8", "backslashreplace")


def _bars(stats: Stats) -> list[tuple[str, dict[str, int], int]]:
    """Title, counts by name, and what they are shares of."""
    answers = stats.distributions.get("answer_characters")
    short = {} if stats.labels else dict(list(stats.short_answers.items())[:12])
    groups = [
        ("Classes", stats.labels, stats.records),
        ("Most frequent short answers", short, answers.count if answers else 0),
        ("Longer answer of a pair", stats.longer, stats.records),
        ("Licences", stats.licences, stats.records),
        ("Sources", stats.sources, stats.records),
        ("Raw datasets", stats.origins, stats.records),
        ("Turns by role", stats.roles, sum(stats.roles.values())),
    ]
    return [(title, counts, total) for title, counts, total in groups if len(counts) > 1 or title.startswith("Turns")]


def _option(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
