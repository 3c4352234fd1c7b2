"""``vlmtrain launch``."""

from __future__ import annotations

import click

__all__ = ["launch"]


@click.command()
@click.argument("name", required=False)
def launch(name: str | None) -> None:
    """List the configurations for several GPUs, or print one for accelerate.

    \b
    Examples:
      vlmtrain launch
      vlmtrain launch fsdp > fsdp.yaml
      accelerate launch --config_file fsdp.yaml -m vlmtrain dpo --recipe idefics2-rlaifv-dpo ...
    """  # noqa: D301
    from vlmtrain.launch import launch_names, launch_text

    if name is not None:
        click.echo(launch_text(name), nl=False)
        return
    width = max(map(len, launch_names()))
    for known in launch_names():
        click.echo(f"{known:<{width}}  {launch_text(known).splitlines()[0].removeprefix('# ')}")
