"""The numbers of a dataset for a terminal: tables and bars that also read well without colour or in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vlmdata.findings import findings, percent
from vlmdata.histogram import Distribution, compact
from vlmdata.stats import MEASURES, Stats
from vlmdata.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["BARS", "terminal"]

BARS = ("turns", "images_per_row", "question_words", "answer_words", "chosen_minus_rejected_words", "megapixels")
"""The distributions that are drawn large, in the terminal and first in the gallery."""

_WIDTH = 80
_LEVELS = "▁▂▃▄▅▆▇█"
_SPARK = 10
_MOST = 8
_LONGEST_BAR = 40
_PLAIN = str.maketrans({"≥": ">=", "–": "-", "−": "-", "…": "~", "“": '"', "”": '"'})


def terminal(stats: Stats, *, width: int | None = None, color: bool | None = None, encoding: str | None = None) -> str:
    """Everything as text.

    Args:
        stats: of ``vlmdata.stats.collect``.
        width: columns; None takes the terminal's, 80 where there is none.
        color: None decides by whether standard output is a terminal.
        encoding: of the output, so that bars can be drawn with what it has; None takes standard output's.
    """
    from rich.console import Console
    from rich.rule import Rule
    from rich.text import Text

    live = sys.stdout.isatty() if color is None else color
    blocks = _has_blocks(encoding or sys.stdout.encoding or "utf-8")
    columns = width or (None if sys.stdout.isatty() else _WIDTH)
    console = Console(width=columns, force_terminal=live, no_color=not live, highlight=False)
    with console.capture() as captured:
        for dataset in stats.datasets:
            line = Text(harmless(dataset["name"]), style="bold cyan")
            line.append(f"  {dataset['records']:,} {dataset['kind']} rows of {dataset['source']}", style="default")
            console.print(line, overflow="fold")
        console.print()
        console.print(_facts(stats))
        console.print()
        console.print(_spreads(stats, blocks, console.width))
        console.print()
        for name in BARS:
            if name in stats.distributions and not _flat(stats.distributions[name]):
                console.print(Rule(_title(name), align="left", style="dim", characters="─" if blocks else "-"))
                spread = stats.distributions[name]
                _print_bars(console, [(found.label, found.count) for found in spread.bins(_MOST)], spread.count, blocks)
        for title, counts, total in _counted(stats):
            console.print(Rule(title, align="left", style="dim", characters="─" if blocks else "-"))
            _print_bars(console, list(counts.items()), total, blocks)
        console.print()
        for finding in findings(stats):
            sign, style = ("!", "bold yellow") if finding.level == "warning" else ("-", "dim")
            console.print(Text(f"{sign} {harmless(finding.text)}", style=style))
    text = "\n".join(line.rstrip() for line in captured.get().split("\n"))
    return text if blocks else text.translate(_PLAIN).encode("ascii", "replace").decode()


def _has_blocks(encoding: str) -> bool:
    try:
        _LEVELS.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _facts(stats: Stats) -> Table:
    """One line for each kind of count; what does not apply is left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def say(name: str, value: str) -> None:
        table.add_row(name, Text(harmless(value)))

    lost = f"{stats.read - stats.kept:,} {'dropped' if stats.derived else 'rejected'}"
    say("rows", f"{stats.read:,} read = {stats.kept:,} kept + {lost}")
    if stats.records != stats.kept:
        say("records", f"{stats.records:,}")
    say("images", _images(stats))
    system = f"; {stats.system_rows:,} rows with a system turn" if stats.system_rows else ""
    say("turns", _listed(stats.roles, 4) + system)
    if stats.longer:
        share = {name: percent(count, stats.records) for name, count in stats.longer.items()}
        sides = ", ".join(f"{name} {share[name]}" for name in ("chosen", "rejected", "neither"))
        say("longer", f"{sides} of the pairs")
    if stats.imbalance is not None:
        rows = list(stats.labels.values())
        ratio = f", {stats.imbalance:.1f} : 1" if rows[-1] else ""
        say("labels", f"{len(rows):,} classes, the largest {rows[0]:,} rows, the smallest {rows[-1]:,}{ratio}")
    say("licences", _listed(stats.licences, 3))
    flat = {name: spread.min for name, spread in stats.distributions.items() if _flat(spread)}
    constant = [f"{_title(name)} {compact(value)}" for name, value in flat.items()]
    if constant:
        say("constant", "; ".join(constant))
    if len(stats.origins) > 1 or len(stats.sources) > 1:
        say("sources", _listed(stats.sources, 4))
        say("origins", _listed(stats.origins, 4))
    return table


def _images(stats: Stats) -> str:
    if not stats.images:
        return "none"
    line = f"{stats.images:,}, {stats.distinct_images:,} different"
    if stats.stored.formats:
        line += f"; stored as {_listed(stats.stored.formats, 3)}"
    return line


def _listed(counts: Mapping[str, int], most: int) -> str:
    """The largest counts, the others as a number."""
    shown = [f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda item: -item[1])[:most]]
    return ", ".join(shown) + (f" and {len(counts) - most:,} others" if len(counts) > most else "")


def _title(name: str) -> str:
    measure = MEASURES[name]
    return f"{measure.title}, {measure.unit}" if measure.unit else measure.title


def _spreads(stats: Stats, blocks: bool, width: int) -> Table:
    """Quantiles and small histograms; on a narrow terminal fewer of them."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if blocks else box.ASCII2, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    columns = ("min", "p5", "p50", "mean", "p95", "max") if width >= _WIDTH else ("min", "p50", "mean", "max")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    blocks = blocks and width >= _WIDTH
    if blocks:
        table.add_column("", no_wrap=True, style="cyan")
    for name, spread in stats.distributions.items():
        if _flat(spread):
            continue
        values = [compact(getattr(spread, column)) for column in columns]
        table.add_row(_title(name), *values, *([_spark(spread)] if blocks else []))
    return table


def _spark(spread: Distribution) -> str:
    """A histogram in one line; what is not empty can be seen."""
    counts = [found.count for found in spread.bins(_SPARK)]
    most = max(counts)
    return "".join(_LEVELS[-(-count * 7 // most)] if count else " " for count in counts)


def _flat(spread: Distribution) -> bool:
    return spread.min == spread.max


def _counted(stats: Stats) -> Iterator[tuple[str, dict[str, int], int]]:
    """Title, counts by name, and what they are shares of."""
    if stats.labels:
        title, counts = _ends("classes", stats.labels)
        yield title, counts, sum(stats.labels.values())
    elif stats.short_answers:
        answers = stats.distributions["answer_characters"].count
        yield "most frequent short answers", dict(list(stats.short_answers.items())[:_MOST]), answers
    if stats.rejected:
        yield f"{'dropped' if stats.derived else 'rejected'}, by reason", stats.rejected, stats.read - stats.kept


def _ends(title: str, counts: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """The largest and the smallest."""
    if len(counts) <= 2 * _MOST:
        return title, dict(counts)
    items = list(counts.items())
    return f"{title}: the largest and the smallest of {len(items):,}", dict(items[: _MOST // 2] + items[-_MOST // 2 :])


def _print_bars(console: Console, items: Sequence[tuple[str, int]], total: int, blocks: bool) -> None:
    """Labels, bars, counts and shares of the total in columns."""
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    most = max((count for _, count in items), default=0) or 1
    names = [harmless(name) or "(blank)" for name, _ in items]
    names = [name if blocks else name.translate(_PLAIN) for name in names]
    room = min(max(map(cell_len, names), default=0), 28)
    figures = max((len(f"{count:,}") for _, count in items), default=1)
    length = min(max(console.width - room - figures - 13, 8), _LONGEST_BAR)
    for name, (_, count) in zip(names, items, strict=True):
        short = name if cell_len(name) <= room else set_cell_size(name, room - 1) + ("…" if blocks else "~")
        line = Text("  " + set_cell_size(short, room) + " ")
        line.append(_bar(count / most, length, blocks), style="cyan")
        line.append(f" {count:>{figures},} {_share(count, total)}")
        console.print(line, no_wrap=True, overflow="crop")


def _bar(share: float, length: int, blocks: bool) -> str:
    eighths = round(share * length * 8)
    if share and not eighths:
        eighths = 1
    if not blocks:
        return ("#" * -(-eighths // 8)).ljust(length)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(length)


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):5.1f} %"
