"""Raw files on the Hugging Face Hub: listed at a pinned commit, streamed without being downloaded whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import DataError, MissingError, VlmError

__all__ = ["RemoteFiles", "is_hub_id", "list_remote", "open_remote"]


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """The Parquet files of a dataset at one commit: ``(path in the repository, size in bytes)``."""

    repo: str
    revision: str
    files: tuple[tuple[str, int], ...]

    def url(self, path: str) -> str:
        """Where ``open_remote`` finds a file."""
        return f"hf://datasets/{self.repo}@{self.revision}/{path}"


def is_hub_id(text: str) -> bool:
    """Whether a text has the form ``owner/name``."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", text, re.ASCII) is not None


def list_remote(repo: str, revision: str | None) -> RemoteFiles:
    """List the Parquet files of a dataset; a branch name is resolved to the commit it stands for now.

    Raises:
        MissingError: there is no such dataset or revision, or it cannot be reached.
        DataError: it holds no Parquet files.
    """
    from huggingface_hub import HfApi

    with _reachable(repo, revision):
        api = HfApi()
        commit = api.dataset_info(repo, revision=revision).sha
        tree: list[Any] = list(api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True))
    files = sorted((entry.path, entry.size) for entry in tree if entry.path.endswith(".parquet"))
    if not files:
        raise DataError(f"{repo} on the hub holds no Parquet files; download its files and give them as RAW")
    return RemoteFiles(repo, str(commit), tuple(files))


@contextmanager
def open_remote(url: str) -> Iterator[Any]:
    """A file on the hub, read in ranges.

    Raises:
        MissingError: it cannot be reached.
    """
    from huggingface_hub import HfFileSystem

    with _reachable(url, None), HfFileSystem().open(url, "rb") as file:
        yield file


@contextmanager
def _reachable(what: str, revision: str | None) -> Iterator[None]:
    """Turn what goes wrong on the way to the hub into one line."""
    from huggingface_hub import errors

    # Whichever HTTP client the hub library is built on, its errors descend from that client's and from OSError.
    unreachable: tuple[type[BaseException], ...] = errors.HfHubHTTPError.__bases__
    try:
        yield
    except VlmError:
        raise
    except errors.GatedRepoError:
        raise MissingError(
            f"{what} asks for its terms to be accepted: do so on its page, then run hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise MissingError(f"{what} has no revision {revision!r} on the hub; give a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        raise MissingError(
            f"there is no file, folder or hub dataset {what}; check the name, or run hf auth login if it is private"
        ) from None
    except unreachable as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise MissingError(
            f"the hub could not be reached for {what} ({reason}); "
            "download its files where there is network and give them as RAW, or check HF_HUB_OFFLINE and the network"
        ) from None
