"""How many samples each shard holds: from an index file, img2dataset's statistics, or the headers.
An index is a JSON file, `{"lgpl_index": 1, "shards": {"00000.tar": 9871, ...}}`, with the shards'
names relative to its own place. It stands for its shards wherever a list of shards is wanted. One
that was fetched is a stranger's: its names could otherwise have any file of this machine read into
the training data, or run commands."""

import functools
import json
import logging
import posixpath
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm.contrib.concurrent import thread_map

from lgpl.atomic import write_text
from lgpl.data.shards import Shard, expand
from lgpl.data.store import Store
from lgpl.data.transfer import GCS, HTTP, S3, Unreachable, is_url, scheme
from lgpl.errors import UserError
from lgpl.progress import Bar

log = logging.getLogger(__name__)

MANY = 100  # shards from which counting is worth a progress bar and a word about the index
THREADS = 16  # counts are waited for: a seek on a disk, an answer of a store
KIND = "lgpl_index"
MOST_SAMPLES = 10**8  # of a shard; a count above is nonsense, and the order of a pass would not fit
LOCAL = ("file", "local")
REMOTE = (*HTTP, *S3, *GCS)
FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
BEFORE_COLON = re.compile(r"[^/?#]*:")  # a drive, or a scheme such as `file:` without slashes


def named(patterns: str | Iterable[str], what: str, store: Store) -> dict[str, int | None]:
    """The shards that patterns and index files (`.json`) stand for, with their samples where an
    index counts them; raises as `expand`, `read_index` and `Store.check`."""
    shards: dict[str, int | None] = {}
    for path in expand(patterns, what, store):
        shards |= read_index(path, store) if is_index(path) else {path: None}
    for path in shards:
        store.check(path)  # now, and not first in a worker process
    return shards


def counted(
    shards: Mapping[str, int | None], what: str, store: Store
) -> tuple[dict[str, int], list[str]]:
    """Samples of each of the `named` shards, and what is wrong with shards, logged under `what`.
    Those that no index counts are counted by img2dataset's statistics beside them or by headers."""
    unknown = [path for path, number in shards.items() if number is None]
    many = len(unknown) >= MANY
    if many:
        log.info("%s: `lgpl data index` counts once for all runs.", what)
    count, bar = functools.partial(count_samples, store=store), f"counting {what}"
    counts = thread_map(
        count, unknown, max_workers=THREADS, desc=bar, disable=not many, tqdm_class=Bar
    )
    found = dict(zip(unknown, counts, strict=True))
    faults = [f"{path} {damage}" for path, (_, damage) in found.items() if damage]
    for fault in faults:
        log.warning("%s: %s", what, fault)
    return {path: found[path][0] if n is None else n for path, n in shards.items()}, faults


def count_samples(path: str, store: Store) -> tuple[int, str | None]:
    """Samples of one shard, and what is wrong with it."""
    known = statistics(path, store).get("successes")
    if known is not None:
        return known, None
    with closing(Shard(path, store)) as shard:
        number, damage = len(shard), shard.damage
    if damage is not None:
        return number, f"is damaged or cannot be read after {number} samples ({damage})"
    return number, None if number else "holds no samples"


def statistics(path: str, store: Store) -> dict[str, Any]:
    """What stands in the `_stats.json` beside a shard, as img2dataset and `CodeShardWriter` leave
    it: `successes`, the number of samples, and of code shards `made_by`, each if it is sound."""
    try:
        found = json.loads(store.read(statistics_name(path)))
    except (Unreachable, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    sound = {"successes": _is_count, "made_by": lambda value: isinstance(value, dict)}
    return {name: found[name] for name, is_sound in sound.items() if is_sound(found.get(name))}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= MOST_SAMPLES


def statistics_name(path: str) -> str:
    """`a_stats.json` of `a.tar`, and `a_stats.json?query` of `a.tar?query`."""
    name = _without_query(path)
    return f"{name.removesuffix('.tar')}_stats.json{path[len(name) :]}"


def _without_query(path: str) -> str:
    """A path as it is, a URL of HTTP without query and fragment."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if scheme(path) in HTTP else path


def write_index(path: Path, counts: dict[str, int], **more: Any) -> None:
    """Write an index of each shard's samples, with the names of shards in or below its folder
    relative to it, and `more` entries."""
    folder = path.parent.resolve()
    names = {}
    for shard, number in counts.items():
        full = Path(shard).resolve()
        if not is_url(shard):
            shard = str(full.relative_to(folder) if full.is_relative_to(folder) else full)
        names[shard] = number
    write_text(path, json.dumps({KIND: 1, **more, "shards": names}, indent=0) + "\n")


def is_index(path: str) -> bool:
    """By its name, whatever query a URL has."""
    return _without_query(path).endswith(".json")


def read_index(path: str, store: Store) -> dict[str, int | None]:
    """Shards and their counts; a `UserError` for a file that is no index, or as in `place_of`."""
    try:
        index = json.loads(store.read(path))
        counts = {str(name): int(number) for name, number in index["shards"].items()}
        if index[KIND] != 1 or not all(map(_is_count, counts.values())):
            raise ValueError("unknown form")
    except Unreachable as error:
        raise UserError(f"{path}: the index cannot be read ({error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
        raise UserError(f"{path} is no index; make one with `lgpl data index`.") from e
    if not counts:
        raise UserError(f"{path}: the index names no shards.")
    return {place_of(name, path, store.allow_local): number for name, number in counts.items()}


def place_of(name: str, index: str, allow_local: bool) -> str:
    """Path or URL of a shard by its name in an index, itself a path or URL; a `UserError` where a
    remote index names what it may not, such as, without `allow_local`, a local file."""
    is_remote, is_local = is_url(index) and scheme(index) not in LOCAL, _is_local(name)
    if is_remote and not (_is_allowed(name, index) or (allow_local and is_local)):
        cure = "correct it or set data.store.allow_local" if is_local else "correct it"
        allowed = "shards in or below its own folder and http(s)://, s3:// and gs:// URLs"
        fault = f"the entry {name!r} is not read from a remote index, which may name {allowed}"
        raise UserError(f"{index}: {fault}; {cure}.")
    if is_url(name) or name.startswith("/"):
        return name
    return posixpath.join(_without_query(index).rpartition("/")[0], name)


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
