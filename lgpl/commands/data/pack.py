"""`lgpl data pack`: a folder of pictures -> shards.

Which sample goes where is planned before anything is written, so that each shard can be written by
any process, and an interrupted pack goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from lgpl.atomic import write_text
from lgpl.commands.data.members import faults
from lgpl.commands.data.processes import in_processes
from lgpl.commands.data.sources import Picture, Source, by_class, extension, find, from_table
from lgpl.data.index import count_samples, write_index
from lgpl.data.members import BadSample
from lgpl.data.shards import LARGEST_MEMBER
from lgpl.data.store import Store
from lgpl.data.writer import ShardWriter, clean_key, remove_left
from lgpl.errors import UserError

RECORD = ".pack.json"  # tells the shards of one plan from those of another
CLASSES = "classes.txt"


class Planned(NamedTuple):
    """A shard to be.

    Attributes:
        path: its final name.
        folder: of the pictures.
        samples: key and picture of each.
    """

    path: Path
    folder: Path
    samples: list[tuple[str, Picture]]


class Packed(NamedTuple):
    """What became of it.

    Attributes:
        samples: how many it holds.
        skipped: files that were left out, and why.
    """

    samples: int
    skipped: list[tuple[str, str]]


def parser() -> ArgumentParser:
    p = ArgumentParser(
        description="Make shards of a folder of pictures: with one folder for each class, with a "
        ".txt beside each picture, or with a table of captions. The pictures are taken over byte "
        "for byte, shuffled; broken ones are skipped and counted. An interrupted pack goes on with "
        "the same command."
    )
    p.add_argument("source", metavar="SOURCE", help="folder of the pictures")
    p.add_argument("--out", required=True, help="folder of the shards and their indexes")
    p.add_argument("--captions", help=".csv or .jsonl with the pictures' captions")
    p.add_argument("--file-column", default="file_name", help="its column of paths in SOURCE")
    p.add_argument("--caption-column", default="text", help="its column of captions")
    p.add_argument(
        "--val", default="0.01", help="held out: a share, a number, or a folder like SOURCE"
    )
    p.add_argument("--shard-samples", type=int, default=1000, help="samples of a shard, about")
    p.add_argument("--shard-mb", type=int, default=1000, help="its size at the most, about")
    p.add_argument("--seed", type=int, default=0, help="of the order and of what is held out")
    p.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes, a shard each"
    )
    return p


def run(options: Namespace) -> None:
    for name in ("shard_samples", "shard_mb"):
        if options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')}: {options[name]} is below 1.")
    source, held = sources(options)
    out = Path(options.out)
    keys: set[str] = set()
    plan = {
        split: planned(out, split, part, keys, options)
        for split, part in (("train", source), ("val", held))
    }
    try:
        begin(out, plan, source)
        done, skipped = pack(plan, options.workers)
        splits = finish(out, plan, done)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}).") from error
    skipped += source.skipped + held.skipped
    report(out, splits, source, skipped)


def sources(options: Namespace) -> tuple[Source, Source]:
    """What is trained on and what is held out.

    Raises:
        UserError: no pictures, or none that would be trained on.
    """
    folder, val = Path(options.source), Path(options.val)
    if not folder.is_dir():
        raise UserError(f"SOURCE: {folder} is no folder.")
    if options.captions is None:
        source = find(folder)
    else:
        table = Path(options.captions)
        source = from_table(folder, table, options.file_column, options.caption_column)
    if not source.pictures:
        causes = Counter(cause for _, cause in source.skipped)
        raise UserError(f"{folder}: nothing to pack; most often: {causes.most_common(1)[0][0]}.")
    if not val.is_dir():
        return hold_out(source, options.val, options.seed)
    if options.captions is not None:
        raise UserError("--val: with --captions it is a share or a number, not a folder.")
    held = find(val) if source.classes is None else by_class(val, source.classes)
    if held.classes != source.classes:
        raise UserError(f"--val: {val} is a class folder and {folder} is none.")
    return source, held


def hold_out(source: Source, val: str, seed: int) -> tuple[Source, Source]:
    """Split off a share below 1 or a number of pictures, with all that a table says of them."""
    files = sorted({picture.file for picture in source.pictures})
    try:
        wanted = float(val)
    except ValueError:
        wanted = math.nan
    if not 0 <= wanted < math.inf or (wanted > 1 and wanted % 1):
        raise UserError(
            f"--val: {val!r} is neither a share below 1, a number of pictures, nor a folder."
        )
    share = round(wanted * len(files)) or math.ceil(wanted)
    count = share if wanted < 1 else int(wanted)
    if count >= len(files):
        raise UserError(f"--val: {val} of {len(files)} pictures leaves none to train on.")
    held = set(random.Random(seed).sample(files, count))
    parts: tuple[list[Picture], list[Picture]] = ([], [])
    for picture in source.pictures:
        parts[picture.file in held].append(picture)
    return (
        Source(source.folder, parts[0], source.classes, source.skipped),
        Source(source.folder, parts[1], source.classes),
    )


def planned(
    out: Path, split: str, source: Source, keys: set[str], options: Namespace
) -> list[Planned]:
    """The shards of a split, shuffled and of one size, give or take a sample.

    Args:
        out: folder of the shards.
        split: train or val.
        source: the pictures.
        keys: those that are taken; the new ones are added.
        options: of the command.
    """
    samples = [(unique_key(picture.file, keys), picture) for picture in source.pictures]
    random.Random(options.seed).shuffle(samples)
    total = sum(picture.size for picture in source.pictures)
    count = max(
        math.ceil(len(samples) / options.shard_samples),
        math.ceil(total / (options.shard_mb * 1_000_000)),
    )
    digits = len(str(count - 1))
    return [
        Planned(
            out / f"{split}-{i:0{digits}}.tar",
            source.folder,
            samples[len(samples) * i // count : len(samples) * (i + 1) // count],
        )
        for i in range(count)
    ]


def unique_key(file: str, taken: set[str]) -> str:
    """`n01440764_x` for `n01440764/x.JPEG`: a key that no other sample has."""
    stem = clean_key(readable(os.path.splitext(file)[0]).replace("/", "_"))
    key, number = stem, 1
    while key in taken:
        number += 1
        key = f"{stem}_{number}"
    taken.add(key)
    return key


def readable(name: str) -> str:
    """The name of a file or folder, which need not be UTF-8, as text."""
    return os.fsencode(name).decode("utf-8", "replace")


def begin(out: Path, plan: dict[str, list[Planned]], source: Source) -> None:
    """Put the plan on record, or find it there from a pack that was interrupted.

    Raises:
        UserError: the folder holds shards of something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(source.classes).encode("utf-8", "replace"))
    for shard in itertools.chain(*plan.values()):
        digest.update(repr((shard.path.name, shard.samples)).encode("utf-8", "replace"))
    record = {"source": str(source.folder), "plan": digest.hexdigest()}
    try:
        before = json.loads((out / RECORD).read_bytes())
    except (OSError, ValueError):
        before = None
    ours = {shard.path for shard in itertools.chain(*plan.values())} if before == record else set()
    strange = set(out.glob("*.tar")) - ours
    if strange:
        raise UserError(
            f"--out: {min(strange)} is no shard of these pictures and options; name another folder "
            "or delete it."
        )
    others = [out / name for name in (RECORD, CLASSES, *(f"{split}.json" for split in plan))]
    remove_left([*(shard.path for shard in itertools.chain(*plan.values())), *others])
    write_text(out / RECORD, json.dumps(record) + "\n")
    if source.classes is not None:
        write_text(out / CLASSES, "".join(f"{readable(name)}\n" for name in source.classes))


def pack(
    plan: dict[str, list[Planned]], workers: int
) -> tuple[dict[Path, int], list[tuple[str, str]]]:
    """Write the shards that are missing; gives the samples of these, and what was skipped."""
    missing = [shard for shard in itertools.chain(*plan.values()) if not shard.path.exists()]
    done, skipped = {}, []
    with tqdm(
        total=sum(len(shard.samples) for shard in missing), unit="picture", disable=not missing
    ) as bar:
        for shard, packed in zip(missing, in_processes(pack_shard, missing, workers), strict=True):
            done[shard.path] = packed.samples
            skipped += packed.skipped
            bar.update(len(shard.samples))
    return done, skipped


def pack_shard(shard: Planned) -> Packed:
    """Write one shard, unless none of its samples is sound.

    Raises:
        UserError: it cannot be written.
    """
    skipped = []
    writer = ShardWriter(shard.path)
    try:
        for key, picture in shard.samples:
            try:
                members = read(shard.folder, picture)
            except OSError:
                skipped.append((picture.file, "file that cannot be read"))
                continue
            except BadSample as error:
                skipped.append((picture.file, str(error)))
                continue
            wrong = faults({"__key__": key, **members})
            if wrong:
                skipped.append((picture.file, wrong[0]))
            else:
                writer.write(key, members)
        if writer.samples:
            writer.close()
    except OSError as error:
        raise UserError(f"{shard.path} cannot be written ({error.strerror}).") from error
    finally:
        writer.discard()
    return Packed(writer.samples, skipped)


def read(folder: Path, picture: Picture) -> dict[str, bytes]:
    """The members of a sample.

    Raises:
        OSError: a file cannot be read.
        BadSample: a file is larger than what is read of a shard.
    """
    members = {extension(picture.file): _content(folder / picture.file)}
    if picture.text is not None:
        members["txt"] = _content(folder / picture.text)
    if picture.caption is not None:
        members["txt"] = picture.caption.encode("utf-8", "replace")
    if picture.label is not None:
        members["cls"] = str(picture.label).encode()
    if picture.more is not None:
        members["json"] = json.dumps(picture.more, ensure_ascii=False).encode("utf-8", "replace")
    return members


def _content(file: Path) -> bytes:
    if file.stat().st_size > LARGEST_MEMBER:
        raise BadSample(f"file of more than {LARGEST_MEMBER} bytes")
    return file.read_bytes()


def finish(
    out: Path, plan: dict[str, list[Planned]], done: dict[Path, int]
) -> dict[str, dict[str, int]]:
    """Index the splits; gives their shards with the samples of each."""
    splits = {}
    for split, part in plan.items():
        standing = [shard.path for shard in part if shard.path.exists()]
        counts = {
            str(path): done[path] if path in done else count_samples(str(path), Store())[0]
            for path in standing
        }
        if counts:
            splits[split] = counts
            write_index(out / f"{split}.json", counts)
    return splits


def report(
    out: Path, splits: dict[str, dict[str, int]], source: Source, skipped: Sequence[tuple[str, str]]
) -> None:
    """Say what there is now and what was left out.

    Raises:
        UserError: nothing to train on.
    """
    causes = Counter(cause for _, cause in skipped)
    such_as = {cause: file for file, cause in reversed(skipped)}
    if "train" not in splits:
        cause = causes.most_common(1)[0][0]
        raise UserError(
            f"{source.folder}: no picture can be trained on; most often: {cause}, such as "
            f"{such_as[cause]}."
        )
    for cause, count in causes.most_common():
        print(f"skipped {count}: {cause}, such as {such_as[cause]}")
    if source.classes is not None:
        print(f"{out}/{CLASSES}: {len(source.classes)} classes")
    for split, counts in splits.items():
        total = sum(counts.values())
        print(f"data.{split}: {out}/{split}.json  # {total} samples in {len(counts)} shards")
