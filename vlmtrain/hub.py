"""Finished runs and merged models on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmdata.errors import ConfigError, MissingError

__all__ = ["check_access", "check_folder", "push"]

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# What a run needed while it went, or what is nobody else's business.
_PRIVATE = ["checkpoints/**", "**/checkpoint-*/**", "**/.*", "**/*.partial/**", "optimizer*", "training_args.bin"]
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


def check_access(repo: str) -> None:
    """Refuse a push that cannot work, before anything long is done.

    Raises:
        ConfigError: no repository name, no token, a token that may not write, or somebody else's name space.
        MissingError: the hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not _ID.fullmatch(repo):
        raise ConfigError(f"push_to_hub is {repo!r}, expected ORG/NAME")
    try:
        who: dict[str, Any] = HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError(f"push_to_hub {repo}: there is no token: {_LOGIN}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ConfigError(f"push_to_hub {repo}: the hub refuses this token: {_LOGIN}") from error
        raise MissingError(f"push_to_hub {repo}: the hub answers with status {status}: try later") from error
    except Exception as error:
        # Whatever the HTTP client of the day raises when there is no way through.
        raise MissingError(f"push_to_hub {repo}: the hub cannot be reached: {_line(error)}") from error
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(f"push_to_hub {repo}: this token may only read: {_LOGIN}")
    spaces = [str(who.get("name"))]
    spaces += [str(org["name"]) for org in who.get("orgs", ()) if org.get("roleInOrg") != "read"]
    if repo.split("/")[0] not in spaces:
        raise ConfigError(f"push_to_hub {repo}: {spaces[0]} may write to {', '.join(spaces)}, not to another's name")


def check_folder(folder: Path) -> None:
    """Whether there is anything to upload.

    Raises:
        MissingError: no finished run and no model.
    """
    if any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        return
    unfinished = (folder / "checkpoints").is_dir()
    why = "the run was never finished: use --resume" if unfinished else "no adapter and no model in it"
    raise MissingError(f"{folder} cannot be pushed: {why}")


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Upload a run or model folder; checkpoints stay here.

    Args:
        folder: a finished run folder or a merged model.
        repo: ``ORG/NAME``; made if it is not there.
        private: a repository that is made is private; one that is there stays what it is.

    Returns:
        The address of the repository.

    Raises:
        MissingError: nothing finished in that folder, or the hub gave up on the way.
        ConfigError: the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(folder)
    check_folder(folder)
    again = f"the folder is whole: vlmtrain push {folder} {repo} tries again"
    api, message = HfApi(), f"Upload {folder.name}"
    try:
        with _bars_on_terminals_only():
            address = str(api.create_repo(repo, private=private, exist_ok=True))
            api.upload_folder(repo_id=repo, folder_path=folder, ignore_patterns=_PRIVATE, commit_message=message)
    except HfHubHTTPError as error:
        raise ConfigError(f"push to {repo} was refused: {_line(error)}; {again}") from error
    except Exception as error:
        raise MissingError(f"push to {repo} broke off: {_line(error)}; {again}") from error
    return address


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _line(error: Exception) -> str:
    words = " ".join(str(error).split()).split(" For more information")[0].split(". ")[0]
    return words[:200] or type(error).__name__
