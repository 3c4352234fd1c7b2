"""``vlmeval noise``."""

from __future__ import annotations

import click

__all__ = ["noise"]


@click.command(short_help="Say whether published figures differ beyond noise.")
@click.argument("figures", nargs=-1, required=True, metavar="FIGURE FIGURE...")
@click.option("--n", type=int, required=True, help="Questions behind each figure; AMBER has 14216, POPE 3000 a split.")
@click.option("--changed", type=float, metavar="PERCENT", help="Percent of answers that differ, if known or assumed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def noise(figures: tuple[str, ...], n: int, changed: float | None, as_json: bool) -> None:
    """Say whether published figures differ by more than noise, without their answers.

    FIGUREs are accuracies or other shares of n questions in percent, as published; each is judged against the first.
    F1 and other figures that are no share of n questions cannot be judged this way.

    \b
    vlmeval noise 85.8 85.9 --n 14216
    """  # noqa: D301  # click's mark against rewrapping
    import json
    import re
    import shutil

    from vlmdata.errors import ConfigError
    from vlmeval.noise import judge

    if len(figures) < 2:
        raise ConfigError(f"noise takes two or more figures, got {len(figures)}")
    for figure in figures:
        if not re.fullmatch(r"\d+(\.\d+)?", figure):
            raise ConfigError(f"{figure!r} is no percentage: expected a number like 85.8")
    first, *others = [(float(figure), len(figure.partition(".")[2])) for figure in figures]
    judged = [judge(first[0], value, n, decimals=(first[1], digits), changed=changed) for value, digits in others]
    if as_json:
        click.echo(json.dumps([one.to_json() for one in judged], ensure_ascii=False, indent=1))
        return
    for number, one in enumerate(judged):
        lines = [click.wrap_text(line, width=shutil.get_terminal_size((80, 24)).columns) for line in one.words]
        click.echo(("\n" if number else "") + "\n".join(lines))
