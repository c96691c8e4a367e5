"""What an index names: its own user's paths and URLs, or what a stranger's list may lead to.

An index that was fetched from elsewhere is a stranger's. Its names would otherwise read any file of
this machine into the training data, or run commands.
"""

from __future__ import annotations

import posixpath
import re
import urllib.parse

from lgpl.data.transfer import GCS, HTTP, S3, is_url, scheme
from lgpl.errors import UserError

LOCAL = ("file", "local")
REMOTE = (*HTTP, *S3, *GCS)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
BEFORE_COLON = re.compile(r"[^/?#]*:")  # a drive, or a scheme such as `file:` without slashes


def place_of(name: str, index: str, allow_local: bool) -> str:
    """Path or URL of a shard that an index names.

    Args:
        name: relative to the index, or a path or URL.
        index: path or URL of the index.
        allow_local: a remote index may name local files.

    Raises:
        UserError: a remote index names what it may not.
    """
    if is_remote(index):
        _check(name, index, allow_local)
    if is_url(name) or name.startswith("/"):
        return name
    place = index.partition("?")[0] if scheme(index) in HTTP else index
    return posixpath.join(place.rpartition("/")[0], name)


def is_remote(path: str) -> bool:
    """Whether others may have written what a path or URL leads to."""
    return is_url(path) and scheme(path) not in LOCAL


def _check(name: str, index: str, allow_local: bool) -> None:
    if not _is_allowed(name, index) and not (allow_local and _is_local(name)):
        local = "" if allow_local or not _is_local(name) else " or set data.store.allow_local"
        raise UserError(
            f"{index}: the entry {name!r} is not read from a remote index, which may name shards "
            f"in or below its own folder and http(s)://, s3:// and gs:// URLs; correct it{local}."
        )


def _is_allowed(name: str, index: str) -> bool:
    if CONTROL.search(name) or "\\" in name:
        return False
    if not is_url(name):
        return scheme(index) != "pipe" and _is_below(name, index)  # a command has no folder
    kind = scheme(name)
    start, _, rest = name.partition("://")
    if kind in HTTP:  # by urllib, to which :: is nothing but a part of IPv6 addresses
        return start.lower() == kind and "::" not in rest.partition("/")[2]
    return start.lower() in REMOTE and "::" not in rest  # fsspec's sign for chained protocols


def _is_below(name: str, index: str) -> bool:
    """Whether a relative name stays in the folder of its index, also as a server reads it."""
    if scheme(index) in HTTP:
        name = re.split(r"[?#]", name, maxsplit=1)[0]
    for path in (name, urllib.parse.unquote(name)):
        if not path or path.startswith("/") or "\\" in path or CONTROL.search(path):
            return False
        if "::" in path or BEFORE_COLON.match(path):
            return False
        if posixpath.normpath(path).partition("/")[0] == "..":
            return False
    return True


def _is_local(name: str) -> bool:
    if CONTROL.search(name) or "::" in name or "\\" in name:
        return False
    return name.startswith("/") or name.partition("://")[0].lower() in LOCAL
