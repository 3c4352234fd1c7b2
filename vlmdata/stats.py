"""What a converted dataset holds, in exact numbers: one pass over its shards that reads no image.

Turns, lengths and sizes are counted by Arrow a batch at a time. The numbers of all rows are kept as compact arrays, so
that quantiles are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdata.errors import ConfigError, DataError
from vlmdata.histogram import Distribution, Numbers, distribution
from vlmdata.image_log import IMAGES
from vlmdata.manifest import ImageCounts, Manifest, add_counts
from vlmdata.places import open_parquet
from vlmdata.shards import Shards
from vlmdata.turns import Turns

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["KEPT_ANSWERS", "MEASURES", "Measure", "Stats", "collect"]

KEPT_ANSWERS = 100
"""How many different short answers are told."""

_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Measure:
    """What a distribution tells.

    Attributes:
        title: in a few words.
        of: what is measured, so that its count can be read: ``row``, ``image``, ``question`` ...
        unit: of the numbers; empty for plain counts.
    """

    title: str
    of: str
    unit: str = ""


MEASURES: Mapping[str, Measure] = {
    "turns": Measure("turns per row", "row"),
    "images_per_row": Measure("images per row", "row"),
    "row_characters": Measure("text per row", "row", "chars"),
    "question_characters": Measure("question length", "question", "chars"),
    "question_words": Measure("question length", "question", "words"),
    "answer_characters": Measure("answer length", "answer", "chars"),
    "answer_words": Measure("answer length", "answer", "words"),
    "chosen_characters": Measure("chosen length", "pair", "chars"),
    "chosen_words": Measure("chosen length", "pair", "words"),
    "rejected_characters": Measure("rejected length", "pair", "chars"),
    "rejected_words": Measure("rejected length", "pair", "words"),
    "chosen_minus_rejected_words": Measure("chosen \N{MINUS SIGN} rejected", "pair", "words"),
    "width": Measure("image width", "image", "px"),
    "height": Measure("image height", "image", "px"),
    "megapixels": Measure("image size", "image", "MP"),
    "aspect_ratio": Measure("width / height", "image"),
    "image_bytes": Measure("image file size", "stored image", "bytes"),
}
"""All distributions there can be, in the order they are shown."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The numbers of one dataset, or of several together.

    Attributes:
        datasets: ``{name, kind, source, licence, command, records}`` of each.
        records: rows in the shards.
        read: raw rows (for a derived dataset, rows of the datasets it was made from).
        kept: of them, those that became records.
        rejected: the others, by reason; kept + rejected = read.
        distributions: by name of ``MEASURES``; absent where there is nothing to measure.
        roles: turns by role.
        system_rows: rows that begin with a system turn.
        labels: rows by class name, classes without rows included.
        sources: rows by source.
        licences: rows by licence.
        origins: rows by the raw dataset they came from.
        short_answers: the ``KEPT_ANSWERS`` most frequent answers of at most ``vlmdata.turns.SHORT_TEXT`` characters.
        images: image places in all rows.
        distinct_images: different images among them.
        repeated_rows: rows with an image that another row has too.
        most_repeated: how often the most frequent image stands.
        longer: pairs whose ``chosen``, or whose ``rejected``, has more words, or ``neither``.
        stored: what the manifests say of the stored images.
    """

    datasets: tuple[dict[str, Any], ...]
    records: int
    read: int
    kept: int
    rejected: dict[str, int]
    distributions: dict[str, Distribution]
    roles: dict[str, int]
    system_rows: int
    labels: dict[str, int]
    sources: dict[str, int]
    licences: dict[str, int]
    origins: dict[str, int]
    short_answers: dict[str, int]
    images: int
    distinct_images: int
    repeated_rows: int
    most_repeated: int
    longer: dict[str, int]
    stored: ImageCounts

    @property
    def derived(self) -> bool:
        """Some dataset was made from others, so what is missing from it was mostly left out on purpose."""
        return any(dataset["command"] != "convert" for dataset in self.datasets)

    @property
    def imbalance(self) -> float | None:
        """Rows of the largest class over rows of the smallest; infinite when a class is empty, None without labels."""
        if not self.labels:
            return None
        least = min(self.labels.values())
        return max(self.labels.values()) / least if least else float("inf")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; an infinite imbalance is null."""
        from dataclasses import asdict

        values = asdict(self)
        values["distributions"] = {
            name: {"of": MEASURES[name].of, "unit": MEASURES[name].unit, **spread.to_json()}
            for name, spread in self.distributions.items()
        }
        ratio = self.imbalance
        values["imbalance"] = None if ratio is None or ratio == float("inf") else ratio
        return values


def collect(datasets: Sequence[Shards], report: Callable[[int], None] = lambda rows: None) -> Stats:
    """The numbers of datasets, taken together.

    Args:
        datasets: opened with ``open_shards``.
        report: told how many rows more have been read.

    Raises:
        ConfigError: there is no dataset, or one is given twice.
        DataError: a shard cannot be read.
    """
    if not datasets:
        raise ConfigError("no dataset is given, expected one or more folders of vlmdata convert")
    real = [dataset.path.resolve() for dataset in datasets]
    for index, path in enumerate(real):
        if path in real[:index]:
            raise ConfigError(f"{datasets[index].path} is given twice, so its rows would count twice; give it once")
    counts = _Collector()
    for dataset in datasets:
        counts.begin(dataset.manifest)
        for file in dataset.files:
            counts.read(file, report)
        counts.read_image_log(dataset.path)
    return counts.finish(datasets)


class _Collector:
    """Takes batches of rows and adds them up."""

    def __init__(self) -> None:
        self._numbers: dict[str, Numbers] = {name: Numbers() for name in MEASURES}
        self._names: dict[str, Counter[str]] = {
            name: Counter() for name in ("roles", "labels", "source", "licence", "dataset", "answers")
        }
        self._hashes: list[pa.Array] = []
        self._rows_of_hashes = Numbers()
        self._label_names: tuple[str, ...] = ()
        self._rows = self._system_rows = 0
        self._longer: Counter[str] = Counter()

    def begin(self, manifest: Manifest) -> None:
        """The next batches are of this dataset."""
        self._label_names = manifest.label_names
        self._names["labels"].update(dict.fromkeys(manifest.label_names, 0))

    def read(self, file: Path, report: Callable[[int], None]) -> None:
        import pyarrow as pa

        wanted = ("messages", "prompt", "chosen", "rejected", "label", "source", "licence")
        try:
            with open_parquet(file) as parquet:
                there = [name for name in wanted if name in parquet.schema_arrow.names]
                columns = [*there, "provenance.dataset", "image_sha256", "image_size"]
                for batch in parquet.iter_batches(_BATCH, columns=columns):
                    self._add(batch)
                    report(batch.num_rows)
        except (KeyError, OSError, pa.ArrowException) as error:
            detail = " ".join(str(error).split())[:200]
            raise DataError(f"{file} cannot be read ({detail}); vlmdata validate tells more") from None

    def read_image_log(self, folder: Path) -> None:
        """Bytes of each stored image, where the conversion left a log of them."""
        import pyarrow.parquet as pq

        for file in sorted((folder / IMAGES).glob("*.parquet")):
            column = pq.read_table(file, columns=["bytes_after"])["bytes_after"]
            self._numbers["image_bytes"].add(column.drop_null().to_numpy())

    def _add(self, batch: pa.RecordBatch) -> None:
        import numpy as np
        import pyarrow.compute as pc

        rows = batch.num_rows
        for name in ("source", "licence"):
            self._count(name, batch.column(name))
        self._count("dataset", pc.struct_field(batch.column("provenance"), "dataset"))
        self._add_images(batch)
        if "label" in batch.schema.names:
            found = batch.column("label").drop_null().to_numpy()
            for index, count in enumerate(np.bincount(found, minlength=len(self._label_names))):
                name = self._label_names[index] if index < len(self._label_names) else str(index)
                self._names["labels"][name] += int(count)
        names = ("messages",) if "messages" in batch.schema.names else ("prompt", "chosen", "rejected")
        turns = [Turns(batch.column(name)) for name in names]
        self._put("turns", turns[0].per_row(rows))
        self._put("row_characters", np.sum([one.sums(one.characters, rows) for one in turns], axis=0))
        for one in turns:
            for role, count in one.roles.items():
                self._names["roles"][role] += count
        asked = turns[0].is_role("user")
        self._put("question_characters", turns[0].characters[asked])
        self._put("question_words", turns[0].words[asked])
        self._system_rows += int(turns[0].is_role("system").sum())
        if len(turns) == 3:
            self._add_pairs(turns[1], turns[2], rows)
        else:
            answered = turns[0].is_role("assistant")
            self._put("answer_characters", turns[0].characters[answered])
            self._put("answer_words", turns[0].words[answered])
            self._names["answers"].update(turns[0].short_texts(answered))
        self._rows += rows

    def _add_images(self, batch: pa.RecordBatch) -> None:
        import pyarrow.compute as pc

        hashes, sizes = batch.column("image_sha256"), batch.column("image_size").flatten()
        self._put("images_per_row", pc.list_value_length(hashes).to_numpy(zero_copy_only=False))
        self._hashes.append(hashes.flatten())
        self._rows_of_hashes.add(pc.list_parent_indices(hashes).to_numpy() + self._rows)
        for name in ("width", "height"):
            self._put(name, pc.struct_field(sizes, name).to_numpy(zero_copy_only=False))

    def _add_pairs(self, chosen: Turns, rejected: Turns, rows: int) -> None:
        for name, side in (("chosen", chosen), ("rejected", rejected)):
            self._put(f"{name}_characters", side.sums(side.characters, rows))
            self._put(f"{name}_words", side.sums(side.words, rows))
        difference = chosen.sums(chosen.words, rows) - rejected.sums(rejected.words, rows)
        self._put("chosen_minus_rejected_words", difference)
        more, less = int((difference > 0).sum()), int((difference < 0).sum())
        self._longer.update(chosen=more, rejected=less, neither=rows - more - less)

    def _put(self, name: str, values: NDArray[Any]) -> None:
        import numpy as np

        self._numbers[name].add(values.astype(np.int32))

    def _count(self, name: str, column: pa.Array) -> None:
        counted = column.value_counts()
        for value, count in zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True):
            self._names[name]["(not stated)" if value is None else value] += count

    def _repeats(self) -> tuple[int, int, int]:
        """Distinct images, rows that share an image with another row, and how often the commonest image stands."""
        import numpy as np
        import pyarrow as pa

        # Hashes of many million images are more than 2 GiB, the most that 32-bit offsets reach.
        hashes = pa.chunked_array(self._hashes, pa.string()).cast(pa.large_string()).combine_chunks()
        if not len(hashes):
            return 0, 0, 0
        codes = hashes.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        # An image twice in one row is no repeat between rows, so (image, row) counts once.
        rows = self._rows_of_hashes.array()
        pairs = np.unique(codes.astype(np.int64) * self._rows + rows)
        images_of, rows_of = np.divmod(pairs, self._rows)
        shared = np.bincount(images_of)[images_of] > 1
        counts = np.bincount(codes)
        return len(counts), len(np.unique(rows_of[shared])), int(counts.max())

    def finish(self, datasets: Sequence[Shards]) -> Stats:
        """Everything that was added."""
        arrays = {name: numbers.array() for name, numbers in self._numbers.items()}
        width, height = arrays["width"], arrays["height"]
        arrays["megapixels"] = width.astype(float) * height / 1e6
        arrays["aspect_ratio"] = width / height
        spreads = {name: spread for name in MEASURES if (spread := distribution(arrays[name])) is not None}
        stored, rejected = ImageCounts(), dict[str, int]()
        for dataset in datasets:
            stored.add(dataset.manifest.images)
            add_counts(rejected, dataset.manifest.rejected)
        distinct, repeated, most = self._repeats()
        return Stats(
            datasets=tuple(_described(dataset) for dataset in datasets),
            records=self._rows,
            read=sum(dataset.manifest.rows.read for dataset in datasets),
            kept=sum(dataset.manifest.rows.kept for dataset in datasets),
            rejected=_by_count(rejected),
            distributions=spreads,
            roles=_by_count(self._names["roles"]),
            system_rows=self._system_rows,
            labels=_by_count(self._names["labels"]),
            sources=_by_count(self._names["source"]),
            licences=_by_count(self._names["licence"]),
            origins=_by_count(self._names["dataset"]),
            short_answers=dict(list(_by_count(self._names["answers"]).items())[:KEPT_ANSWERS]),
            images=len(width),
            distinct_images=distinct,
            repeated_rows=repeated,
            most_repeated=most,
            longer=dict(self._longer),
            stored=stored,
        )


def _described(dataset: Shards) -> dict[str, Any]:
    manifest = dataset.manifest
    return {
        "name": dataset.path.resolve().name,
        "kind": manifest.kind,
        "source": manifest.source,
        "licence": manifest.licence,
        "command": manifest.command,
        "records": manifest.records,
    }


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    """Largest first, then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
