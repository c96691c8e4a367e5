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
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
BEFORE_COLON = re.compile(r"[^/?#]*:")  # a drive, or a scheme such as `file:` without slashes


def place_of(name: str, index: str, allow_local: bool) -> str:
    """Path or URL of a shard by its name in an index, itself a path or URL; a `UserError` where a
    remote index names what it may not, such as, without `allow_local`, a local file."""
    is_remote, is_local = is_url(index) and scheme(index) not in LOCAL, _is_local(name)
    if is_remote and not (_is_allowed(name, index) or (allow_local and is_local)):
        local = " or set data.store.allow_local" if is_local else ""
        raise UserError(
            f"{index}: the entry {name!r} is not read from a remote index, which may name shards "
            f"in or below its own folder and http(s)://, s3:// and gs:// URLs; correct it{local}."
        )
    if is_url(name) or name.startswith("/"):
        return name
    place = index.partition("?")[0] if scheme(index) in HTTP else index
    return posixpath.join(place.rpartition("/")[0], name)


def _is_allowed(name: str, index: str) -> bool:
    if FORBIDDEN.search(name):
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
        if not path or path.startswith("/") or "::" in path or FORBIDDEN.search(path):
            return False
        if BEFORE_COLON.match(path) or posixpath.normpath(path).partition("/")[0] == "..":
            return False
    return True


def _is_local(name: str) -> bool:
    is_plain = "::" not in name and not FORBIDDEN.search(name)
    return is_plain and (name.startswith("/") or name.partition("://")[0].lower() in LOCAL)
