"""Gives the embedded emoji more captions, so that a prompt need not be the label to the letter.

    python data/recipes/emoji_captions.py --out runs/emoji_model/images

copies the shards of data/emoji and adds to each sample `a.txt` to `e.txt`: phrases of the emoji's
label and tags, such as "a slice of pizza".
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from sharding import Sample, write_shards

EMOJI = Path(__file__).parents[1] / "emoji"


def phrases(label: str, tags: list[str]) -> dict[str, str]:
    """Captions by their members; an emoji with few tags uses them again, or its label."""
    first, second, last = (tags[0], tags[min(1, len(tags) - 1)], tags[-1]) if tags else [label] * 3
    return {
        "a.txt": f"a {label}",
        "b.txt": f"a picture of a {label}",
        "c.txt": f"{first} {label}",
        "d.txt": f"{label}, {second}",
        "e.txt": f"a {last} of {label}",
    }


def samples(shard: Path) -> Iterator[Sample]:
    """The samples of a shard with their further captions."""
    with tarfile.open(shard) as tar:
        members: dict[str, dict[str, bytes]] = {}
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            members.setdefault(key, {})[extension] = file.read()
    for key, content in members.items():
        known = json.loads(content["json"])
        more = phrases(known["label"], known["tags"])
        yield key, content | {name: text.encode() for name, text in more.items()}


def main() -> int:
    """Runs the command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the shards")
    out = parser.parse_args().out
    shards = {
        path.name.removesuffix(".gz"): [*samples(path)] for path in sorted(EMOJI.glob("*.tar.gz"))
    }
    write_shards(out, shards, total=sum(map(len, shards.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
