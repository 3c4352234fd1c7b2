"""What a conversion did, as lines that add up."""

from __future__ import annotations

from vlmdata.convert import Conversion
from vlmdata.licences import non_commercial
from vlmdata.rejects import REJECTS, REJECTS_FILE

__all__ = ["summary_lines"]


def summary_lines(done: Conversion) -> list[str]:
    """One line for rows, rejects, records, images, files and licence each; what does not apply is left out."""
    manifest, images = done.manifest, done.manifest.images
    rows = manifest.rows
    first = manifest.inputs[0].name + (" ..." if len(manifest.inputs) > 1 else "")
    lines = [f"input    {sum(file.rows for file in manifest.inputs):,} rows in {len(manifest.inputs):,} files: {first}"]
    lines.append(f"rows     {rows.read:,} read = {rows.kept:,} kept + {rows.rejected:,} rejected")
    lines += [f"         {count:,} {reason}" for reason, count in manifest.rejected.items()]
    if manifest.rejected:
        lines.append(f"         each with its detail in {done.out / REJECTS_FILE}, the raw rows in {REJECTS}/;")
        lines.append(f"         when the cause is mended: vlmdata convert --from-rejects {done.out} --out NEW")
    lines.append(f"records  {manifest.records:,} {manifest.kind}" + (", one for each turn" if _split(done) else ""))
    if images.count:
        parts = f"{images.passed:,} passed as they came + {images.reencoded:,} re-encoded"
        lines.append(f"images   {images.count:,} = {parts}")
    if images.changes:
        changes = ", ".join(f"{name} {count:,}" for name, count in images.changes.items())
        lines.append(f"         re-encoded for: {changes} (an image may have several reasons)")
    if images.small_decodes or images.small_decodes_declined:
        small = f"{images.small_decodes:,} decoded small, {images.small_decodes_declined:,} in full after a try"
        lines.append(f"         resized JPEG: {small}, the others in full")
    if manifest.label_names:
        lines.append(f"labels   {len(manifest.label_names)} classes")
    size = sum(shard.bytes for shard in manifest.shards)
    reused = f", {done.reused} of them from before" if done.reused else ""
    lines.append(f"shards   {len(manifest.shards):,} files{reused}, {size / 1e6:,.1f} MB in {done.out}")
    warning = ": NOT for commercial use" if non_commercial(manifest.licence) else ""
    lines.append(f"licence  {manifest.licence}{warning}")
    return lines


def _split(done: Conversion) -> bool:
    return bool(done.manifest.options["turns"] == "split")
