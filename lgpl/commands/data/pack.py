"""`lgpl data pack`: shards of a folder of images with one folder for each class, with a .txt
beside each image, with a table of captions, or of images alone. The images are taken over byte for
byte, shuffled; broken ones are skipped and counted. An interrupted pack goes on with the same
command."""

import hashlib
import itertools
import json
import math
import os
import random
import stat
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lgpl import cpus
from lgpl.atomic import remove_partials, write_text
from lgpl.commands.data import sources
from lgpl.commands.data.members import by_cause, faults
from lgpl.commands.data.processes import SECONDS_HELP, in_processes, sample
from lgpl.commands.data.sources import ImageFile, Skipped, Source
from lgpl.commands.parsing import ArgumentParser, counted, require_positive
from lgpl.data.classes import CLASSES
from lgpl.data.index import count_samples, write_index
from lgpl.data.members import BadSample
from lgpl.data.shards import LARGEST_MEMBER
from lgpl.data.store import Store
from lgpl.data.watch import SECONDS
from lgpl.data.writer import ShardWriter, clean_key, remove_left
from lgpl.errors import UserError
from lgpl.progress import Bar

RECORD = ".pack.json"  # identifies the plan whose shards these are


class Planned(NamedTuple):
    """A shard to be. All are planned before anything is written: any process can write each, and
    the next pack finds those that are missing."""

    split: str  # train or val
    path: Path  # its final name
    folder: Path  # of the images
    samples: list[tuple[str, ImageFile]]  # key and image of each
    caption_line: int | None = None  # that is taken of captions of several lines


class Packed(NamedTuple):
    """What became of a shard."""

    samples: int
    skipped: Skipped
    several: int  # captions of several lines


def add_arguments(p: ArgumentParser) -> None:
    images = "folder of the images, or .txt file of their paths"
    p.add_argument("source", metavar="SOURCE", help=images)
    p.add_argument("--out", required=True, help="folder of the shards and their indexes")
    p.add_argument("--captions", help=".csv or .jsonl of captions; SOURCE/metadata.jsonl")
    p.add_argument("--file-column", default="file_name", help="its column of paths in SOURCE")
    columns = "its column of captions; further ones are kept as KEY.COLUMN.txt"
    p.add_argument("--caption-column", nargs="+", default=["text"], help=columns)
    line = "take this line, from 1, of captions of several lines; all of them by default"
    p.add_argument("--caption-line", type=int, help=line)
    p.add_argument("--val", default="0.01", help="held out: share, number, or folder like SOURCE")
    p.add_argument("--shard-samples", type=int, default=1000, help="samples of a shard, about")
    p.add_argument("--shard-mb", type=int, default=1000, help="its size at the most, about")
    p.add_argument("--seed", type=int, default=0, help="of the order and of what is held out")
    p.add_argument("--workers", type=int, default=cpus.available(), help="shards at a time")
    p.add_argument("--sample-seconds", type=float, default=SECONDS, help=SECONDS_HELP)


def run(options: Namespace) -> None:
    require_positive(options, "caption_line", "shard_samples", "shard_mb", "workers")
    source, held = divided(options)
    out, keys = Path(options.out), set[str]()
    plan = planned("train", source, keys, options) + planned("val", held, keys, options)
    try:
        begin(out, plan, source)
        done, skipped = pack(plan, options.workers, options.sample_seconds)
        finish(out, plan, done, source, skipped + source.skipped + held.skipped)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}).") from error


def divided(options: Namespace) -> tuple[Source, Source]:
    """What is trained on and what is held out; a UserError where one lacks images."""
    folder, val = Path(options.source), Path(options.val)
    columns = options.file_column, options.caption_column
    if not folder.is_dir() and not is_list(folder):
        raise UserError(f"SOURCE: {folder} is neither a folder nor a .txt file of paths.")
    if options.captions is None:
        source = found(folder, *columns)
    elif is_list(folder):
        raise UserError("--captions: the table lists the images; SOURCE is their folder, no list.")
    else:
        source = sources.from_table(folder, Path(options.captions), *columns)
    if not source.images:
        raise UserError(f"{folder}: nothing to pack; most often: {by_cause(source.skipped)[0][1]}.")
    if not val.is_dir() and not is_list(val):
        return hold_out(source, options.val, options.seed)
    if options.captions is not None:
        raise UserError("--val: with --captions it is a share or a number, not a folder.")
    held = sources.by_class(val, source.classes) if source.classes else found(val, *columns)
    if held.classes != source.classes:
        raise UserError(f"--val: {val} is a class folder and {folder} is none.")
    if held.captioned != source.captioned:
        has, lacks = (val, folder) if held.captioned else (folder, val)
        raise UserError(f"--val: {has} has captions and {lacks} has none.")
    return source, held


def found(source: Path, *columns: Any) -> Source:
    """The images of a folder or of a list."""
    return sources.from_list(source) if is_list(source) else sources.find(source, *columns)


def is_list(source: Path) -> bool:
    return source.suffix.lower() == ".txt" and source.is_file()


def hold_out(source: Source, val: str, seed: int) -> tuple[Source, Source]:
    """Split off a share below 1 or a number of images, with all that a table says of them."""
    files = sorted({image.file for image in source.images})
    try:
        wanted = float(val)
    except ValueError:
        wanted = math.nan
    if not 0 <= wanted < math.inf or (wanted > 1 and wanted % 1):
        raise UserError(f"--val: {val!r} is neither a share below 1, a number nor a folder.")
    share = round(wanted * len(files)) or math.ceil(wanted)
    count = share if wanted < 1 else int(wanted)
    if count >= len(files):
        raise UserError(f"--val: {val} of {len(files)} images leaves none to train on.")
    held = set(random.Random(seed).sample(files, count))
    kept = [image for image in source.images if image.file not in held]
    rest = [image for image in source.images if image.file in held]
    return replace(source, images=kept), replace(source, images=rest, skipped=[])


def planned(split: str, source: Source, keys: set[str], options: Namespace) -> list[Planned]:
    """The shards of a split, shuffled and of one size, give or take a sample; their samples' keys
    are added to those that are taken."""
    samples = [(unique_key(image.file, keys), image) for image in source.images]
    random.Random(options.seed).shuffle(samples)
    total = sum(image.size for image in source.images)
    shards = max(len(samples) / options.shard_samples, total / (options.shard_mb * 1_000_000))
    count = math.ceil(shards)
    digits, plan = len(str(count - 1)), []
    for i in range(count):
        path = Path(options.out, f"{split}-{i:0{digits}}.tar")
        part = samples[len(samples) * i // count : len(samples) * (i + 1) // count]
        plan.append(Planned(split, path, source.folder, part, options.caption_line))
    return plan


def unique_key(file: str, taken: set[str]) -> str:
    """`n01440764_x` for `n01440764/x.JPEG`: a key that no other sample has."""
    stem = clean_key(readable(os.path.splitext(file)[0]).lstrip("./").replace("/", "_"))
    keys = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
    key = next(key for key in keys if key not in taken)
    taken.add(key)
    return key


def readable(name: str) -> str:
    """The name of a file or folder, which need not be UTF-8, as text."""
    return os.fsencode(name).decode("utf-8", "replace")


def begin(out: Path, plan: list[Planned], source: Source) -> None:
    """Put the plan on record, or find it there from a pack that was interrupted; a UserError where
    the folder holds shards of something else."""
    out.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr(source.classes).encode("utf-8", "replace"))
    for shard in plan:
        line = () if shard.caption_line is None else (shard.caption_line,)
        digest.update(repr((shard.path.name, shard.samples, *line)).encode("utf-8", "replace"))
    record = {"source": str(source.folder), "plan": digest.hexdigest()}
    try:
        before = json.loads((out / RECORD).read_bytes())
    except (OSError, ValueError):
        before = None
    paths = [shard.path for shard in plan]
    if strange := set(out.glob("*.tar")).difference(paths if before == record else ()):
        said = f"{min(strange)} is no shard of these images and options"
        raise UserError(f"--out: {said}; name another folder or delete it.")
    others = (RECORD, CLASSES, "train.json", "val.json")
    remove_left([*paths, *(out / name for name in others)])
    write_text(out / RECORD, json.dumps(record) + "\n")
    if source.classes is not None:
        write_text(out / CLASSES, "".join(f"{readable(name)}\n" for name in source.classes))


def pack(plan: list[Planned], workers: int, seconds: float) -> tuple[dict[Path, int], Skipped]:
    """Write the shards that are missing; gives the samples of these, and what was skipped."""
    missing = [shard for shard in plan if not shard.path.exists()]
    done, skipped, several = {}, [], 0
    total = sum(len(shard.samples) for shard in missing)
    packed = in_processes(pack_shard, missing, workers, seconds)
    with Bar(total=total, unit="image", disable=not missing) as bar:
        for shard, made in zip(missing, packed, strict=True):
            done[shard.path] = made.samples
            skipped += made.skipped
            several += made.several
            bar.update(len(shard.samples))
    if several:
        line = missing[0].caption_line
        taken = f"line {line} of each" if line else "all of them; --caption-line takes one"
        print(f"{several} captions have several lines: {taken}")
    return done, skipped


def pack_shard(shard: Planned) -> Packed:
    """Write one shard, unless none of its samples is sound."""
    skipped, several = [], 0
    remove_partials(shard.path)  # of a process that a sample ended
    writer = ShardWriter(shard.path)
    try:
        for place, (key, image) in enumerate(shard.samples):
            try:
                members = read(shard.folder, image)
                has_several = take_line(members, shard.caption_line)
                with sample(place):
                    causes = faults({"__key__": key, **members})
            except BadSample as error:
                causes = [str(error)]
            if causes:
                skipped.append((image.file, causes[0]))
            else:
                writer.write(key, members)
                several += has_several
        if writer.samples:
            writer.close()
    finally:
        writer.discard()
    return Packed(writer.samples, skipped, several)


def take_line(members: dict[str, bytes], number: int | None) -> bool:
    """Take this line of each caption that has several, and say whether any has; a BadSample where
    one has no such line."""
    has_several = False
    for name in [name for name in members if f".{name}".endswith(".txt")]:
        lines = [line for line in members[name].splitlines() if line.strip()]
        if len(lines) > 1:
            has_several = True
            if number is not None and len(lines) < number:
                raise BadSample(f"caption without a line {number}")
            if number is not None:
                members[name] = lines[number - 1]
    return has_several


def read(folder: Path, image: ImageFile) -> dict[str, bytes]:
    """The members of a sample; a BadSample where a file cannot be read."""
    members = {sources.extension(image.file): _content(folder / image.file)}
    if image.text is not None:
        members["txt"] = _content(folder / image.text)
    if image.caption is not None:
        members["txt"] = image.caption.encode("utf-8", "replace")
    for name, text in (image.others or {}).items():
        members[name] = text.encode("utf-8", "replace")
    if image.label is not None:
        members["cls"] = str(image.label).encode()
    if image.more is not None:
        members["json"] = json.dumps(image.more, ensure_ascii=False).encode("utf-8", "replace")
    return members


def _content(file: Path) -> bytes:
    try:
        info = file.stat()
        if not stat.S_ISREG(info.st_mode):  # reading a pipe might never end
            raise BadSample("what is no file")
        if info.st_size > LARGEST_MEMBER:  # which nobody would read of the shard
            raise BadSample(f"file of more than {LARGEST_MEMBER} bytes")
        return file.read_bytes()
    except OSError as error:
        raise BadSample("file that cannot be read") from error


def finish(
    out: Path, plan: list[Planned], done: dict[Path, int], source: Source, skipped: Skipped
) -> None:
    """Say what was left out, index the splits; a UserError with nothing to train on."""
    splits: dict[str, dict[str, int]] = defaultdict(dict)
    for split, path, *_ in plan:
        if path.exists():
            splits[split][str(path)] = done.get(path) or count_samples(str(path), Store())[0]
    causes = by_cause(skipped)
    if "train" not in splits:
        raise UserError(f"{source.folder}: no image can be trained on; most often: {causes[0][1]}.")
    for count, cause in causes:
        print(f"skipped {count}: {cause}")
    if source.classes is not None:
        plural = "" if len(source.classes) == 1 else "es"
        print(f"{out}/{CLASSES}: {len(source.classes)} class{plural}")
    elif not source.captioned:
        print("images alone, with neither classes nor captions")
    for split, counts in splits.items():
        write_index(out / f"{split}.json", counts)
        total = sum(counts.values())
        held = f"{counted(total, 'sample')} in {counted(len(counts), 'shard')}"
        print(f"data.{split}: {out}/{split}.json  # {held}")
