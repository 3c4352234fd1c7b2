"""``vlmtrain recipes``."""

from __future__ import annotations

import click

__all__ = ["recipes"]


@click.command()
@click.argument("words", nargs=-1, metavar="[show] [NAME]")
def recipes(words: tuple[str, ...]) -> None:
    """List the packaged recipes, or show one.

    \b
    Examples:
      vlmtrain recipes
      vlmtrain recipes show qwen2vl-ocr
      vlmtrain sft --recipe qwen2vl-ocr --data shards/plates --out runs/plates
    """  # noqa: D301
    from vlmdata.errors import ConfigError
    from vlmtrain.config import load_recipe, recipe_names, recipe_text

    names = words[1:] if words[:1] == ("show",) else words
    if len(names) > 1 or (words and not names):
        raise ConfigError(f"expected one recipe to show: {', '.join(recipe_names())}")
    if names:
        click.echo(recipe_text(names[0]), nl=False)
        return
    width = max(map(len, recipe_names()))
    for name in recipe_names():
        recipe = load_recipe(name)
        click.echo(f"{name:<{width}}  {recipe.method}  {recipe.summary}")
