"""`lgpl data check`: read every member of every sample and list what is damaged; exit status 1 says
that something is."""

import functools
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
from jsonargparse import Namespace
from tqdm import tqdm

from lgpl import cpus
from lgpl.commands.data.members import causes_of, faults, is_pickle, is_read, names
from lgpl.commands.data.processes import SECONDS_HELP, in_processes, sample
from lgpl.commands.parsing import ArgumentParser, require_positive
from lgpl.data.decode import Shapes, check_shapes
from lgpl.data.index import named, statistics
from lgpl.data.members import BadSample
from lgpl.data.shards import Shard
from lgpl.data.store import Store
from lgpl.data.watch import SECONDS
from lgpl.progress import Bar

# Ends the cause where both samples are of one shard.
UNSORTED = " of its shard: members of a sample must follow each other, as tar --sort=name does it"


class Report(NamedTuple):
    """What reading a shard gave."""

    damage: list[tuple[str | None, str]]  # a sample's key, None for the whole shard, and the cause
    unread: Counter[str]  # samples with a member that no field reads, by extension
    keys: np.ndarray  # digests of all keys, [N] uint64
    shapes: dict[str, Shapes]  # of the first codes and text features, by member


def add_arguments(p: ArgumentParser) -> None:
    p.add_argument("--workers", type=int, default=cpus.available(), help="shards at a time")
    p.add_argument("--sample-seconds", type=float, default=SECONDS, help=SECONDS_HELP)


def run(options: Namespace) -> None:
    require_positive(options, "workers")
    store = Store(**options.store.as_dict())
    shards = named(options.shards, "SHARDS", store)
    causes, unread, keys = Counter[str](), Counter[str](), []
    first: dict[str, Shapes] = {}  # by member

    def log(path: str, key: str | None, cause: str) -> None:
        tqdm.write(": ".join(part for part in (path, key, cause) if part))
        causes[cause] += 1

    work = functools.partial(check_shard, store=store)
    reports = in_processes(work, list(shards.items()), options.workers, options.sample_seconds)
    for path, report in zip(Bar(shards, unit="shard"), reports, strict=True):
        for key, cause in report.damage:
            log(path, key, cause)
        for name, shapes in report.shapes.items():
            for cause in causes_of(check_shapes, shapes, first.setdefault(name, shapes)):
                log(path, None, cause)
        unread += report.unread
        keys.append(report.keys)
    for path, key, before in repeated(list(shards), keys, store):
        log(path, key, f"key of an earlier sample{UNSORTED if before == path else ''}")

    for name, count in unread.most_common():
        print(f"{count} samples hold a .{name}, which nothing reads")
    print(f"{len(shards)} shards, {sum(map(len, keys))} samples: {causes.total() or 'no'} faults")
    for cause, count in causes.most_common():
        print(f"{count:>8}  {cause}")
    if causes:
        sys.exit(1)


def check_shard(named: tuple[str, int | None], store: Store) -> Report:
    """Read a shard, of a path and, where an index counts it, a number of samples, to its end."""
    path, expected = named
    shard = Shard(path, store)
    report = Report([], Counter(), np.zeros(len(shard), np.uint64), {})
    if shard.damage:
        report.damage.append((None, shard.damage))
    if expected is None:
        expected = statistics(path, store).get("successes", len(shard) or 1)
    if expected != len(shard) and not shard.damage:
        report.damage.append((None, f"{len(shard)} samples instead of {expected}"))
    for place in range(len(shard)):
        key = shard.keys[place]
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        report.keys[place] = int.from_bytes(digest, "little")
        try:
            with sample(place):
                raw = shard[place]
                causes = faults(raw, report.shapes)
        except BadSample as error:
            report.damage.append((key, str(error)))
            continue
        report.damage.extend((key, cause) for cause in causes)
        for name in shard.repeated(place):
            report.damage.append((key, f"member .{name} that is there twice, the last is read"))
        for name in shard.members(place).keys() - raw.keys():
            report.damage.append((key, f"member .{name} that is too large to be read"))
        report.unread.update(n for n in names(raw) if not is_read(n) and not is_pickle(n))
    shard.close()
    return report


def repeated(
    shards: Sequence[str], digests: Sequence[np.ndarray], store: Store
) -> Iterator[tuple[str, str, str]]:
    """Shard and key of every sample whose key an earlier one has, and the shard of that; by the
    digests of all keys, because the keys of 50 million samples would fill the memory."""
    values, counts = np.unique(np.concatenate(digests), return_counts=True)
    values = values[counts > 1]
    seen: dict[str, str] = {}
    for path, own in zip(shards, digests, strict=True):
        places = np.flatnonzero(np.isin(own, values)).tolist()
        if not places:
            continue
        with closing(Shard(path, store)) as shard:
            for place in filter(shard.reach, places):  # all, unless it changed in the meantime
                key = shard.keys[place]
                if key in seen:
                    yield path, key, seen[key]
                seen[key] = path
