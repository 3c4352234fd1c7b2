"""``vlmtrain recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vlmdata.command import ErrorGroup

__all__ = ["recipes", "run", "show"]


@click.group(cls=ErrorGroup, invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the packaged recipes, show one, or run one from raw data to report.

    \b
    Examples:
      vlmtrain recipes
      vlmtrain recipes show qwen2vl-ocr
      vlmtrain recipes run qwen2vl-ocr plates.json --out work/plates
    """  # noqa: D301
    if context.invoked_subcommand is None:
        import textwrap

        from vlmtrain.recipe import load_recipe, recipe_names

        for name in recipe_names():
            recipe = load_recipe(name)
            click.echo(f"{click.style(name, bold=True)}  {recipe.method}")
            click.echo(textwrap.fill(recipe.summary, 78, initial_indent="  ", subsequent_indent="  "))
            click.echo(textwrap.fill(f"after {recipe.follows}", 78, initial_indent="  ", subsequent_indent="  "))


@recipes.command()
@click.argument("name")
@click.option("--yaml", "only_yaml", is_flag=True, help="The YAML file alone, to start one of your own.")
def show(name: str, only_yaml: bool) -> None:
    """Print recipe NAME: its commands from raw data to report, and its YAML.

    \b
    Example:
      vlmtrain recipes show qwen2vl-ocr --yaml > mine.yaml
    """  # noqa: D301
    from vlmtrain.recipe import load_recipe, recipe_text
    from vlmtrain.recipe_steps import Places, script, steps

    text = recipe_text(name)
    if only_yaml:
        click.echo(text, nl=False)
        return
    recipe = load_recipe(name)
    click.echo(f"# {recipe.summary}\n# after {recipe.follows}")
    if recipe.data is not None:
        report = {} if recipe.report is None or recipe.report.part else {"data": "AMBER/data", "images": "AMBER/image"}
        click.echo(f"\n# from raw data to report; vlmtrain recipes run {recipe.name} does all of it")
        click.echo(script(steps(recipe, Places(Path("work") / recipe.name, report=report))), nl=False)
    click.echo(f"\n# {recipe.name}.yaml\n{text}", nl=False)


@recipes.command()
@click.argument("name")
@click.argument("raw", nargs=-1)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of all results.")
@click.option("--model", help="Base model instead of the recipe's.")
@click.option("--convert", multiple=True, metavar="FLAG=VALUE", help="Option of vlmdata convert; may be repeated.")
@click.option("--parts", metavar="NAME=SHARE,...", help="How the data is split; '' trains on all rows.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Training key; may be repeated.")
@click.option("--report", multiple=True, metavar="FLAG=VALUE", help="Option of the vlmeval task; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on with what was interrupted.")
@click.option("--dry-run", is_flag=True, help="Print the commands only.")
def run(
    name: str,
    raw: tuple[str, ...],
    out: Path,
    convert: tuple[str, ...],
    report: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run recipe NAME from RAW data to report.

    RAW is what vlmdata convert takes; left out, the source's own hub dataset is read.

    \b
    Examples:
      vlmtrain recipes run vit-food101 --out work/food
      vlmtrain recipes run dpo-llava15 --out work/dpo \\
        --report data=AMBER/data --report images=AMBER/image
    """  # noqa: D301
    from vlmtrain.recipe import load_recipe
    from vlmtrain.recipe_steps import Places, run_steps, script, steps

    places = Places(out, raw, convert=_pairs("--convert", convert), report=_pairs("--report", report), **options)
    found = steps(load_recipe(name), places)
    if dry_run:
        click.echo(script(found), nl=False)
        return
    run_steps(found, out, resume=resume, say=click.echo)


def _pairs(flag: str, given: tuple[str, ...]) -> dict[str, Any]:
    from vlmdata.errors import ConfigError

    pairs: dict[str, Any] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"{flag} {item!r}: expected FLAG=VALUE")
        pairs[key.removeprefix("--").replace("_", "-")] = {"true": True, "false": False}.get(value, value)
    return pairs
