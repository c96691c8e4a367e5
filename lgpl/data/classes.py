"""The names of the classes, which stand in `classes.txt` beside shards or their index."""

from collections.abc import Iterable

from lgpl.data.index import is_index, named
from lgpl.data.shards import expand
from lgpl.data.store import Store
from lgpl.data.transfer import HTTP, Unreachable, scheme
from lgpl.errors import UserError

CLASSES = "classes.txt"


def names_beside(paths: Iterable[str], store: Store) -> tuple[str, list[str]] | None:
    """The file beside shards or indexes, and its lines; None where there is none. A UserError where
    two of them differ, as the same number would mean two classes."""
    found: tuple[str, list[str]] | None = None
    for folder in dict.fromkeys(map(_folder, paths)):
        path = f"{folder}{CLASSES}"
        try:
            lines = store.read(path).decode("utf-8").splitlines()
        except (Unreachable, ValueError):
            continue
        names = [line.strip() for line in lines]
        if not names or not all(names):
            raise UserError(f"{path} should hold a name on every line.")
        if found is not None and names != found[1]:
            raise UserError(f"{found[0]} and {path} name different classes; give one data set.")
        found = found or (path, names)
    return found


def shards_and_indexes(
    patterns: str | Iterable[str], what: str, store: Store
) -> tuple[list[str], list[str]]:
    """The shards that patterns stand for, and the indexes among the patterns."""
    given = expand(patterns, what, store)
    return list(named(given, what, store)), [path for path in given if is_index(path)]


def _folder(path: str) -> str:
    place = path.partition("?")[0] if scheme(path) in HTTP else path
    folder, slash, _ = place.rpartition("/")
    return folder + slash
