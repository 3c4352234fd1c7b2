"""``vlmeval build-synonyms``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["build_synonyms"]


@click.command("build-synonyms", short_help="Make AMBER's synonym table with spaCy, once.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The table to write.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="AMBER folder whose words are taken.  [default: official]"
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def build_synonyms(out: Path, data: Path | None, overwrite: bool) -> None:
    """Make AMBER's table of synonyms once: how alike spaCy's en_core_web_lg calls every two of its 418 words.

    \b
    Scoring with the table needs neither spaCy nor the model:
      vlmeval build-synonyms --out synonyms.tsv
      vlmeval amber --synonyms synonyms.tsv ...
    """  # noqa: D301
    import hashlib

    from vlmdata.errors import OutputExistsError
    from vlmeval import amberset, store
    from vlmeval.metrics import nouns, synonyms
    from vlmeval.metrics.chair import Lexicon
    from vlmeval.progress import track

    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} is there already: replace it with --overwrite")
    if data is None:
        words = nouns.reviewed_words()
    else:
        amber = amberset.read(data)
        words = Lexicon(amber.association, amber.safe).vocabulary
    with track("build-synonyms: words", len(words)) as advance:
        table = synonyms.build(words, advance)
    with store.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        store.write(out, table)
    click.echo(f"{out}: {len(words)} words, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}")
