"""Names for the samples that lgpl writes, whatever their keys were in a shard from elsewhere.

A key such as `../../home/me/x` would be handed on, and lead whoever unpacks the new shard out of
the folder.
"""

from __future__ import annotations

import hashlib
import re

FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # no name in UTF-8 holds the last
DRIVE = re.compile(r"^([A-Za-z]):")
# A file name has 255 bytes at most, a path on Linux 4096.
LONGEST_PART, LONGEST_KEY, LONGEST_EXTENSION = 200, 1000, 50


def clean_key(key: str) -> str:
    """The key as a path that stays below the folder it is unpacked into, and reads back as it is.

    What leads elsewhere, what no file name holds, and dots in the last part, where a key ends with
    the first, become `_`; a key too long for a path becomes its end and a digest.
    """
    parts = ["_" if part == ".." else FORBIDDEN.sub("_", part) for part in key.split("/")]
    *folders, last = parts
    folders = [part for part in folders if part not in ("", ".")]
    cleaned = DRIVE.sub(r"\1_", "/".join([*folders, last.replace(".", "_") or "_"]))
    encoded = cleaned.encode()
    if len(encoded) > LONGEST_KEY or max(map(len, encoded.split(b"/"))) > LONGEST_PART:
        end = encoded[-100:].decode("utf-8", "ignore")
        return f"{re.sub('[./]', '_', end)}-{_digest(key)}"
    return cleaned


def clean_extension(extension: str) -> str:
    """An extension as part of a file name; webdataset leaves out what is empty or begins with _."""
    cleaned = FORBIDDEN.sub("_", extension).replace("/", "_")
    if len(cleaned.encode()) > LONGEST_EXTENSION:
        cleaned = f"{_digest(extension)}.{cleaned.encode()[-24:].decode('utf-8', 'ignore')}"
    return cleaned if cleaned and cleaned[0] != "_" else f"x{cleaned}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
