"""What a remote index may name, and what it may not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lgpl.data.index import (
    count_samples,
    is_index,
    named,
    place_of,
    read_index,
    statistics,
    statistics_name,
)
from lgpl.data.shards import read_shard
from lgpl.data.store import Store
from lgpl.errors import UserError
from tests.shards import write_shards

INDEX = "https://host/sets/own/train.json"
HERE = "https://host/sets/own"


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("0000.tar", f"{HERE}/0000.tar"),
        ("a/b/0000.tar.gz", f"{HERE}/a/b/0000.tar.gz"),
        ("a/../0000.tar", f"{HERE}/a/../0000.tar"),
        ("./0000.tar", f"{HERE}/./0000.tar"),
        ("..hidden/0.tar", f"{HERE}/..hidden/0.tar"),
        ("été 1/0.tar?sig=a:b/../../..&c=%2F..", f"{HERE}/été 1/0.tar?sig=a:b/../../..&c=%2F.."),
        *(
            (url, url)
            for url in (
                "http://other/0.tar", "HTTPS://other/0.tar", "https://me:pass@other:8000/0.tar",
                "https://other/0.tar?X-Amz-Signature=a%2Fb&x=y", "http://[::1]:8000/0.tar",
                "s3://bucket/0.tar", "S3://bucket/0.tar", "s3a://bucket/0.tar", "gs://b/0.tar",
                "gcs://b/0.tar",
            )
        ),
    ],
)  # fmt: skip
def test_what_a_remote_index_may_name(name: str, place: str) -> None:
    assert place_of(name, INDEX, allow_local=False) == place


REFUSED = [
    "/etc/passwd", "//host/0.tar", "file:///etc/passwd", "FILE:///etc/passwd", "File:/etc/passwd",
    "file://localhost/etc/passwd", "local:///etc/passwd", "LOCAL://etc/passwd", "file:etc/passwd",
    "pipe:cat /etc/passwd", "PIPE:cat /etc/passwd", " pipe:cat /etc/passwd", "pipe://x",
    "../0.tar", "a/../../0.tar", "..", "a/b/../../../0.tar", "./../0.tar", "%2e%2e/0.tar",
    "a/%2E%2E/%2e./0.tar", "..%2f0.tar", "%2fetc/passwd", "..\\0.tar", "\\\\host\\0.tar",
    "%5c%5chost/0.tar", "a%5c..%5c..%5c0.tar", "C:\\0.tar", "C:/0.tar", "c:0.tar", "",
    "simplecache::file:///etc/passwd", "simplecache::http://host/0.tar", "a::b.tar",
    "http::file:///etc/passwd", "HTTP::file:///etc/passwd", "s3::file:///etc/passwd",
    "s3://bucket/0.tar::file:///etc/passwd", "zip://0.tar::file:///etc/a.zip",
    "http://host/0.tar::file:///etc/passwd", "filecache::s3://bucket/0.tar",
    "ftp://host/0.tar", "memory://0.tar", "github://a:b@/0.tar", "sftp://host/0.tar",
    "reference://0.tar", "data:text/plain,x", "data://text/plain,x", "abfs://a/0.tar",
    "dir:///etc", "jar:file:///etc/passwd!/x", "http:/etc/passwd", "s3:bucket/0.tar",
    "a\n0.tar", "a\x000.tar", "\x1b[2J.tar", "a%00.tar", "a%0a.tar", " file:///etc/passwd",
    "\tfile:///etc/passwd", "://etc/passwd", "s3\n://b/0.tar",
]  # fmt: skip
LOCAL = ("/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd")


@pytest.mark.parametrize("name", REFUSED, ids=repr)
@pytest.mark.parametrize("index", [INDEX, "s3://bucket/train.json", "HTTP://host/a/train.json"])
def test_what_a_remote_index_may_not_name(name: str, index: str) -> None:
    with pytest.raises(UserError) as error:
        place_of(name, index, allow_local=False)
    said = str(error.value)
    assert said.startswith(f"{index}: the entry {name!r} ") and "\n" not in said
    plain = name.startswith(("/", "file://", "FILE://", "local://", "LOCAL://"))
    assert ("data.store.allow_local" in said) == plain


@pytest.mark.parametrize("name", LOCAL)
def test_local_files_where_they_are_allowed(name: str) -> None:
    assert place_of(name, INDEX, allow_local=True) == name


@pytest.mark.parametrize("name", [n for n in REFUSED if n.lower()[:4] in ("pipe", "zip:", "simp")])
def test_commands_and_chains_never(name: str) -> None:
    with pytest.raises(UserError, match="the entry"):
        place_of(name, INDEX, allow_local=True)


def test_an_index_from_a_command_has_no_folder() -> None:
    """Its names would become part of another command."""
    index = "pipe:curl https://host/train.json"
    with pytest.raises(UserError, match="the entry"):
        place_of("0.tar; rm -rf .", index, allow_local=False)
    assert place_of("https://host/0.tar", index, allow_local=False) == "https://host/0.tar"


@pytest.mark.parametrize("index", ["lists/train.json", "file:///lists/train.json"])
@pytest.mark.parametrize(
    "name", ["/data/0.tar", "simplecache::s3://b/0.tar", "pipe:cat x://0.tar", "memory://0.tar"]
)
def test_a_local_index_names_anything(name: str, index: str) -> None:
    assert place_of(name, index, allow_local=False) == name
    assert place_of("../0.tar", index, allow_local=False) == index.replace("train.json", "../0.tar")


def serves(folder: Path, name: str) -> None:
    (folder / "index.json").write_text(json.dumps({"lgpl_index": 1, "shards": {name: 3}}))


def test_a_run_refuses_and_admits_local_files(
    tmp_path: Path, serve: Any, store: Store, fails: Callable[..., str]
) -> None:
    (secret,) = write_shards(tmp_path / "secret", [3])
    (tmp_path / "data").mkdir()
    url = serve(tmp_path / "data").url
    command = ("data", "check", f"{url}/index.json", "--store.cache", str(store.cache))
    for name in (secret, f"file://{secret}"):
        serves(tmp_path / "data", name)
        said = fails(*command)
        assert said.startswith(f"{url}/index.json: the entry {name!r}") and "allow_local" in said
        store.allow_local = True
        (path,) = named(f"{url}/index.json", "data.train", store)
        assert len(list(read_shard(path, store))) == 3
    serves(tmp_path / "data", "pipe:touch " + str(tmp_path / "executed") + "; echo x://")
    assert "the entry 'pipe:" in fails(*command, "--store.allow_pipe", "true")
    assert not (tmp_path / "executed").exists()


def test_an_index_with_a_signature(tmp_path: Path, serve: Any, store: Store) -> None:
    write_shards(tmp_path / "data", [3])
    serves(tmp_path / "data", "0000.tar?sig=c/d")
    url = serve(tmp_path / "data").url
    (path,) = named(f"{url}/index.json?sig=a/b", "data.train", store)
    assert path == f"{url}/0000.tar?sig=c/d" and len(list(read_shard(path, store))) == 3


@pytest.mark.parametrize(
    ("shard", "statistics"),
    [
        ("https://h/a.tar", "https://h/a_stats.json"),
        ("https://h/a.tar?download=true", "https://h/a_stats.json?download=true"),
        ("https://h/a.tar?x=/b.json#c", "https://h/a_stats.json?x=/b.json#c"),
        ("https://h/a.tar#c.json?d", "https://h/a_stats.json#c.json?d"),
        ("s3://bucket/a#b.tar", "s3://bucket/a#b_stats.json"),
        ("data/a#b.tar", "data/a#b_stats.json"),
    ],
)
def test_what_a_shard_is_called_without_its_query(shard: str, statistics: str) -> None:
    assert statistics_name(shard) == statistics and not is_index(shard)


@pytest.mark.parametrize(
    "shards", ['{"a": 1e999}', '{"a": NaN}', f'{{"a": {10**30}}}', '{"a": -1}', '{"a": []}', "3"]
)
@pytest.mark.parametrize("form", ['{"lgpl_index": 1, "shards": %s}', "[%s", "[" * 10**5 + "%s"])
def test_indexes_that_are_none(tmp_path: Path, form: str, shards: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(form % shards)
    with pytest.raises(UserError, match=f"{path} is no index"):
        read_index(str(path), Store())


@pytest.mark.parametrize(
    "text", ["[" * 10**5, f'{{"successes": {10**30}, "made_by": []}}', '{"successes": "3"}', "\xff"]
)
def test_statistics_that_are_none(tmp_path: Path, text: str) -> None:
    """Samples are then counted by the headers."""
    (path,) = write_shards(tmp_path, [3])
    Path(path.replace(".tar", "_stats.json")).write_text(text, "latin-1")
    assert statistics(path, Store()) == {} and count_samples(path, Store()) == (3, None)


def test_a_zero_byte_in_a_name_is_a_shard_that_is_not_there() -> None:
    assert list(read_shard("a\0.tar")) == []
