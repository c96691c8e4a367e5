"""Models on a hub: `hf:OWNER/NAME[@REVISION][/PART]` wherever a path of a checkpoint may stand.

huggingface_hub fetches and keeps them, with all that it reads from the environment: HF_ENDPOINT,
HF_TOKEN, HF_HOME, HF_HUB_OFFLINE. It moves a file into its cache when the file is whole. Fetched
are configs and safetensors, or the one part that a name ends in; nothing of it is ever run.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lgpl.errors import UserError
from lgpl.lazy import needs
from lgpl.progress import is_terminal

PREFIX = "hf:"
FORM = f"{PREFIX}OWNER/NAME, {PREFIX}OWNER/NAME@REVISION or {PREFIX}OWNER/NAME/FILE"
_NAME = re.compile(rf"{PREFIX}([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.*))?")


@dataclass(frozen=True)
class HubName:
    """What such a name says."""

    repo: str  # OWNER/NAME
    revision: str | None = None  # a branch, a tag or a commit; None is the main branch
    part: str | None = None  # a file or a folder of the repository

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{PREFIX}{self.repo}{revision}{f'/{self.part}' if self.part else ''}"


def is_name(path: str | Path) -> bool:
    """Whether it is a name of the hub and no path."""
    return str(path).startswith(PREFIX)


def parse(name: str | Path) -> HubName:
    """A name in its parts; raises UserError where it has another form. A slash in a revision is
    written %2F, as in a URL."""
    found = _NAME.fullmatch(str(name))
    part = found[3].strip("/") if found and found[3] else None
    if found is None or ".." in Path(part or "").parts:
        raise UserError(f"{name} is no name on a hub; give {FORM}.")
    return HubName(found[1], unquote(found[2]) if found[2] else None, part)


def fetched(
    path: str | Path,
    required: Sequence[str] = (),
    optional: Sequence[str] = (),
    folders: Sequence[str] = (),
) -> Path:
    """A path as it is, and of a name of the hub the file that it ends in, or the folder of what the
    patterns `required` and `optional` match at its top and in `folders`, fetched into the cache.

    Raises UserError where the name has another form, huggingface_hub is missing, there is no such
    repository, revision or part, or none for this token, it has no file for a `required` pattern,
    or neither hub nor cache can give it.
    """
    if not is_name(path):
        return Path(path)
    name = parse(path)
    if name.part is None and not required:
        raise UserError(f"{path} names a whole repository; name a file of it, as {path}/FILE.")
    needs(str(path), "huggingface-hub", "hub")
    from huggingface_hub import snapshot_download

    part = glob.escape(name.part or "")
    top = f"{part}/" if part else ""
    places = [top, *(f"{top}{folder}/" for folder in folders)]
    wanted = [f"{place}{pattern}" for place in places for pattern in (*required, *optional)]
    with _one_sentence(str(path), name, "read"):
        # One call for all: it looks a revision up once, and knows what of it is in the cache.
        patterns = [*wanted, *filter(None, [part])]
        options: Any = {"allow_patterns": patterns, "tqdm_class": _bar()}
        root = snapshot_download(name.repo, revision=name.revision, **options)
    found = Path(root, name.part or "")
    if found.is_file():
        return found
    files = [file.name for file in found.rglob("*") if file.is_file()]
    lacking = [pattern for pattern in required if not fnmatch.filter(files, pattern)]
    if lacking or not files:
        raise UserError(_lacks(path, name, lacking, required))
    return found


def _bar() -> type:
    """A bar for a terminal that leaves nothing behind: what is in the cache has one, too."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "leave": False, "disable": None})

    return Bar


def commit_of(path: Path) -> str | None:
    """The commit of what `fetched` gave for a name; None for any other path."""
    found = re.search(r"/models--[^/]+/snapshots/([0-9a-f]{40})(/|$)", path.as_posix())
    return found and found[1]


def publish(
    repo: str, files: Mapping[str, Path | bytes], known: Sequence[str], private: bool, branch: str
) -> str:
    """Make a repository that holds these files, by their names in it, in one commit; gives its URL.

    What a commit before has of the names `known`, and `files` have not, is deleted. Raises
    UserError where the hub cannot be reached or refuses, or the repository is public in spite of
    `private`.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not is_terminal(sys.stderr):
        disable_progress_bars()
    api = HfApi()
    with _one_sentence(repo, HubName(repo), "write"):
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            cure = "make it private in its settings, or leave --private out"
            raise UserError(f"--private: {url} is there and public; {cure}.")
        if branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        there = api.list_repo_files(repo, revision=branch)
        stale = [name for name in there if name in known and name not in files]
        operations: list[Any] = [CommitOperationAdd(*file) for file in files.items()]
        operations += map(CommitOperationDelete, stale)
        message = "Model, written by `lgpl push`"
        api.create_commit(repo, operations, commit_message=message, revision=branch)
    return str(url)


def _lacks(path: str | Path, name: HubName, lacking: Sequence[str], required: Sequence[str]) -> str:
    """What to say of a repository that has not what is wanted."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(name.repo, revision=name.revision, timeout=10).siblings or []
        held = [file.rfilename for file in found if not file.rfilename.startswith(".")]
    except Exception:  # offline, say
        held = []
    listed = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
    has = f"; it has {listed}" if held else ""
    if not lacking or (held and name.part and not any(f.startswith(name.part) for f in held)):
        return f"{path}: the repository has no file {name.part}{has}."
    code = "pickled weights and code are not fetched unasked"
    released = next((file for file in held if file.endswith((".pt", ".pth"))), None)
    where = HubName(name.repo, name.revision, released)
    other = f", or import released weights with `lgpl import {where}`" if released else ""
    ways = f"name one with {' and '.join(required)}{other}"
    return f"{path} has no {' and no '.join(lacking)}{has}: {code}; {ways}."


@contextmanager
def _one_sentence(path: str, name: HubName, action: str) -> Iterator[None]:
    """Turn as many kinds of errors as a network has into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} {_reason(error, name, action)}.") from error


def _reason(error: BaseException, name: HubName, action: str) -> str:
    from huggingface_hub import constants, errors

    hub, causes = constants.ENDPOINT, list(_chain(error))
    token = f"set HF_TOKEN to a token that may {action} it"

    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if first(errors.OfflineModeIsEnabled):
        if action == "write":
            return "cannot be reached: HF_HUB_OFFLINE is set; unset it"
        kept = f"is not wholly in the cache {constants.HF_HUB_CACHE}"
        return f"{kept}, and HF_HUB_OFFLINE is set; fetch it once without"
    if first(errors.GatedRepoError):
        return f"is gated: accept its terms at {hub}/{name.repo}, and {token}"
    if first(errors.RepositoryNotFoundError):
        return f"is not at {hub}, or private: check the name, and {token}"
    if first(errors.RevisionNotFoundError):
        return f"names the revision {name.revision}, which {hub}/{name.repo} has not"
    status = getattr(getattr(first(errors.HfHubHTTPError), "response", None), "status_code", None)
    if status in (401, 403):
        return f"is refused by {hub} ({status}): {token}"
    if isinstance(error, errors.HFValidationError):
        return f"is no name on a hub; give {FORM}"
    # The hub's own word on a card, or else what lies behind a failed connection.
    cause = error if isinstance(error, ValueError) else causes[-1]
    said = " ".join(str(cause).split())[:200] or type(cause).__name__
    if action == "write":
        return f"cannot be written at {hub} ({said})"
    return f"can neither be fetched from {hub} nor found whole in the cache ({said})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
