"""Small pictures for a page: inside it up to a budget, beyond that in a folder beside it."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vlmdata.errors import VlmError
from vlmeval import store
from vlmeval.progress import track
from vlmeval.shardset import reader

__all__ = ["Picture", "Thumbnails"]

_INDEX = "index.json"
_OURS = re.compile(r"[0-9a-f]{24}\.webp")
_PREFIX = "data:image/webp;base64,"
_TOLD_FROM = 300


@dataclass(frozen=True, slots=True)
class Picture:
    """What a page shows for an image.

    Attributes:
        name: the image's, as the benchmark has it.
        url: a ``data:`` URL or a path beside the page; None where there is nothing to show.
        why: why there is nothing to show.
    """

    name: str
    url: str | None
    why: str = ""


class Thumbnails:
    """The pictures of one page.

    Where all of them fit into the budget they are part of the page. Otherwise all lie in a folder beside it, named by
    what they were made of, and as many of the first as fit are part of the page as well, so that a page sent without
    its folder still shows those. What lies in the folder already is not made again, nor is its image needed.
    """

    def __init__(
        self,
        folder: Path | None,
        beside: Path | None = None,
        *,
        side: int = 320,
        budget: int = 5_000_000,
        most: int = 5_000,
        spare: Sequence[Path] = (),
    ) -> None:
        """Prepare; nothing is read.

        Args:
            folder: image folder or converted dataset; None or one that is gone gives only what lies in ``beside``.
            beside: folder for what is over the budget; None makes nothing beyond the budget.
            side: largest side, in pixels.
            budget: bytes of ``data:`` URLs in the page.
            most: pictures that are made; of more images the rest is not shown.
            spare: folders of other pages' pictures: what is in them is not made again, nor is its image needed.
        """
        self.folder, self.beside, self.side, self.budget, self.most = folder, beside, side, budget, most
        self.spare = spare
        self._held: dict[str, bytes] = {}
        self._size = 0
        self._why: dict[str, str] = {}
        self._file: dict[str, str] = {}

    def make(self, names: Sequence[str]) -> list[Picture]:
        """Pictures of images, in the order of ``names``; the first ones are embedded first."""
        known = self._known()
        wanted, rest = list(dict.fromkeys(names))[: self.most], list(dict.fromkeys(names))[self.most :]
        self._why = {name: f"only {self.most:,} images of a page are shown" for name in rest}
        self._decode(wanted, known)
        shown = [name for name in wanted if name in self._file]
        whole = sum(map(self._cost, dict.fromkeys(self._file[name] for name in shown)))
        spilled = whole > self.budget and self.beside is not None
        if spilled:
            self._spill()
        urls, left = {}, self.budget
        for name in shown:
            file = self._file[name]
            if file not in urls:
                cost = self._cost(file)
                inside = cost <= left
                left -= cost if inside else 0
                urls[file] = self._embedded(file) if inside else self._outside(file)
        self._tidy(set(urls) if spilled else set())
        return [self._picture(name, urls) for name in names]

    def _picture(self, name: str, urls: dict[str, str | None]) -> Picture:
        if name not in self._file:
            return Picture(name, None, self._why[name])
        url = urls[self._file[name]]
        return Picture(name, url, "" if url else "over the size budget of this page")

    def _known(self) -> dict[str, str]:
        """Image name to a file that lies beside the page from an earlier time."""
        side, files = _index(self.beside) if self.beside is not None else (None, {})
        return {name: path.name for name, path in files.items()} if side == self.side else {}

    def _decode(self, names: Sequence[str], known: dict[str, str]) -> None:
        """Hold the thumbnail of every image, or say why there is none."""
        from vlmdata.thumbnails import thumbnails

        waiting: deque[tuple[str, str]] = deque()
        there = set(known.values())

        def images() -> Iterator[bytes]:
            queued = set()
            for name, data in self._read(names, known):
                file = hashlib.sha256(b"%d %b" % (self.side, data)).hexdigest()[:24] + ".webp"
                self._file[name] = file
                if file in there or file in queued:
                    continue
                if found := next((folder / file for folder in self.spare if (folder / file).is_file()), None):
                    self._hold(file, found.read_bytes())
                    there.add(file)
                    continue
                queued.add(file)
                waiting.append((name, file))
                yield data

        bad = set()
        new = sum(name not in known for name in names)
        with track("thumbnails", new, quiet=new < _TOLD_FROM) as advance:
            for url in thumbnails(images(), self.side):
                name, file = waiting.popleft()
                if url is None:
                    bad.add(file)
                else:
                    self._hold(file, base64.b64decode(url.removeprefix(_PREFIX)))
                advance(1)
        for name, file in list(self._file.items()):
            if file in bad:
                del self._file[name]
                self._why[name] = "not an image that can be read"

    def _hold(self, file: str, data: bytes) -> None:
        self._held[file] = data
        self._size += len(data)
        if self.beside is not None and self._size > self.budget:
            self._spill()

    def _read(self, names: Sequence[str], known: dict[str, str]) -> Iterator[tuple[str, bytes]]:
        read: Callable[[str], bytes] | None = None
        with suppress(VlmError, OSError):
            read = reader(self.folder) if self.folder is not None and self.folder.is_dir() else None
        spare = {name: path for folder in reversed(self.spare) for name, path in _index(folder)[1].items()}
        for name in names:
            data = None
            with suppress(VlmError, OSError, ValueError):
                data = read(name) if read is not None else None
            if data:
                yield name, data
            elif name in known:
                self._file[name] = known[name]
            elif name in spare:
                self._file[name] = spare[name].name
                self._hold(spare[name].name, spare[name].read_bytes())
            elif data is None and read is None:
                self._why[name] = "the image folder is not known" if self.folder is None else "the image folder is gone"
            else:
                self._why[name] = "the image is missing" if data is None else "the image file is empty"

    def _cost(self, file: str) -> int:
        """Bytes of its ``data:`` URL."""
        held = self._held.get(file)
        size = len(held) if held is not None else self._place(file).stat().st_size
        return len(_PREFIX) + 4 * ((size + 2) // 3)

    def _place(self, file: str) -> Path:
        assert self.beside is not None
        return self.beside / file

    def _spill(self) -> None:
        assert self.beside is not None
        self.beside.mkdir(parents=True, exist_ok=True)
        for file, data in self._held.items():
            # Thousands of files that can be made again: whole or not there, but not each waited for.
            part = self.beside / f"{file}.{os.getpid()}.tmp"
            part.write_bytes(data)
            os.replace(part, self.beside / file)
        self._held.clear()
        self._size = 0

    def _embedded(self, file: str) -> str:
        held = self._held.get(file)
        return _PREFIX + base64.b64encode(self._place(file).read_bytes() if held is None else held).decode()

    def _outside(self, file: str) -> str | None:
        return None if self.beside is None else f"{self.beside.name}/{file}"

    def _tidy(self, used: set[str]) -> None:
        """Note what lies beside the page, and remove what no longer belongs to it."""
        if self.beside is None or not self.beside.is_dir():
            return
        for path in self.beside.iterdir():
            if path.name not in used and _OURS.fullmatch(path.name):
                path.unlink()
        if used:
            files = {name: file for name, file in self._file.items() if file in used}
            store.write_json(self.beside / _INDEX, {"side": self.side, "files": files})
        else:
            (self.beside / _INDEX).unlink(missing_ok=True)
            with suppress(OSError):
                self.beside.rmdir()


def _index(folder: Path) -> tuple[int | None, dict[str, Path]]:
    """The side of the pictures that a page left in a folder, and image name to file."""
    with suppress(VlmError, OSError, AttributeError):
        index = store.read_json(folder / _INDEX)
        named = {name: str(file) for name, file in index["files"].items()} if "files" in index else {}
        there = {name: folder / file for name, file in named.items() if _OURS.fullmatch(file)}
        return index.get("side"), {name: path for name, path in there.items() if path.is_file()}
    return None, {}
