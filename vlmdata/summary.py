"""What a conversion did, as lines that add up."""

from __future__ import annotations

from vlmdata.convert import REJECTS, Conversion

__all__ = ["summary_lines"]


def summary_lines(done: Conversion) -> list[str]:
    """One line for rows, rejects, records, images and files each; what does not apply is left out."""
    manifest, images = done.manifest, done.manifest.images
    rows = manifest.rows
    first = manifest.inputs[0].name + (" ..." if len(manifest.inputs) > 1 else "")
    lines = [f"input    {sum(file.rows for file in manifest.inputs):,} rows in {len(manifest.inputs):,} files: {first}"]
    lines.append(f"rows     {rows.read:,} read = {rows.kept:,} kept + {rows.rejected:,} rejected")
    lines += [f"         {count:,} {reason}" for reason, count in manifest.rejected.items()]
    if manifest.rejected:
        lines.append(f"         each with its detail in {done.out / REJECTS}")
    lines.append(f"records  {manifest.records:,} {manifest.kind}" + (", one for each turn" if _split(done) else ""))
    if images.count:
        parts = f"{images.passed:,} passed as they came + {images.reencoded:,} re-encoded"
        lines.append(f"images   {images.count:,} = {parts}")
    if images.changes:
        changes = ", ".join(f"{name} {count:,}" for name, count in images.changes.items())
        lines.append(f"         re-encoded for: {changes} (an image may have several reasons)")
    if manifest.label_names:
        lines.append(f"labels   {len(manifest.label_names)} classes")
    size = sum(shard.bytes for shard in manifest.shards)
    reused = f", {done.reused} of them from before" if done.reused else ""
    lines.append(f"shards   {len(manifest.shards):,} files{reused}, {size / 1e6:,.1f} MB in {done.out}")
    return lines


def _split(done: Conversion) -> bool:
    return bool(done.manifest.options["turns"] == "split")
