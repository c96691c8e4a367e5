"""A double of the Hugging Face hub's HTTP API on loopback: repositories of files in memory.

It answers what `huggingface_hub` asks to read and to write models, as the hub does: small files lie
in a commit, large ones (safetensors) are uploaded apart, by their SHA-256, and are read by a
redirect to another host, which must not see the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from lgpl.generator import Sampling

OWNER, TOKEN = "ada", "hf_double"  # who may write, and her token
LARGE = (".safetensors", ".pt", ".ckpt", ".npz")


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files by their names
    branches: dict[str, str] = field(default_factory=dict)  # each with its commit

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Replace all files of a branch; gives the commit."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """The server, in threads of its own, within a `with`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}  # large files by their SHA-256
        self.served: list[str] = []  # each path that was read, with its method
        self.halfway: Callable[[], bool] | None = None  # asked at half of a large file: go on?
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        port = self.server.server_address[1]
        self.url, self.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}/storage"

    def __enter__(self) -> Hub:
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()

    def repo(self, name: str, files: dict[str, bytes] | None = None, **options: bool) -> Repo:
        """A new repository with a first commit."""
        repo = self.repos[name] = Repo(**options)
        repo.commit({".gitattributes": b"", **(files or {})})
        return repo


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self._body()
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.served.append(f"{self.command} {'/'.join(parts)}")
        match [self.command, *parts]:
            case ["POST", "api", "validate-yaml"]:
                wrong = "license: mine" in json.loads(self.body)["content"]
                errors = (
                    [{"message": '"license" must be one of [apache-2.0, mit]'}] if wrong else []
                )
                self._json({"errors": errors, "warnings": []}, 400 if wrong else 200)
            case ["POST", "api", "repos", "create"]:
                self._create(json.loads(self.body))
            case ["GET", "api", "models", owner, name]:
                self._read(f"{owner}/{name}", "main", self._info)
            case ["GET", "api", "models", owner, name, "revision", revision]:
                self._read(f"{owner}/{name}", revision, self._info)
            case ["GET", "api", "models", owner, name, "tree", revision]:
                self._read(f"{owner}/{name}", revision, self._tree)
            case ["POST", "api", "models", owner, name, "branch", branch]:
                self._write(f"{owner}/{name}", lambda repo: self._branch(repo, branch))
            case ["POST", "api", "models", owner, name, "preupload", _]:
                self._write(f"{owner}/{name}", lambda _: self._preupload())
            case ["POST", "api", "models", owner, name, "commit", branch]:
                self._write(f"{owner}/{name}", lambda repo: self._commit(repo, branch, owner, name))
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                self._batch()
            case ["PUT", "storage", sha]:
                self.hub.uploads[sha] = self.body
                self._json({})
            case ["GET" | "HEAD", "storage", sha]:
                assert "Authorization" not in self.headers
                self._content(self.hub.uploads[sha], {"ETag": f'"{sha}"'})
            case ["GET" | "HEAD", owner, name, "resolve", revision, *path]:
                self._read(f"{owner}/{name}", revision, lambda *at: self._file(*at, "/".join(path)))
            case _:
                self._refuse(404, "", f"the double does not know {self.command} {self.path}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in {**sent, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self._json({"error": message}, status, **named, X_Error_Message=message)

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _read(self, name: str, revision: str, answer: Callable[..., None]) -> None:
        """Who may not read a repository learns no more than who names none."""
        if "Authorization" in self.headers and not self._is_known:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self._is_known):
            return self._refuse(404 if self._is_known else 401, "RepoNotFound", "not found")
        if repo.gated:
            return self._refuse(403, "GatedRepo", "ask for access")
        found = repo.files(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        answer(repo, *found, name)

    def _write(self, name: str, answer: Callable[[Repo], None]) -> None:
        if not self._is_known:
            return self._refuse(401, "", "Invalid username or password.")
        answer(self.hub.repos[name])

    def _info(self, repo: Repo, sha: str, files: dict[str, bytes], name: str) -> None:
        siblings = [{"rfilename": file} for file in files]
        self._json({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def _tree(self, repo: Repo, sha: str, files: dict[str, bytes], name: str) -> None:
        listed = []
        for path, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content)}
            entry["oid"] = _git_hash(content)
            if path.endswith(LARGE):
                large = {"oid": _sha256(content), "size": len(content), "pointerSize": 130}
                entry["lfs"] = large
            listed.append(entry)
        self._json(listed)

    def _file(self, repo: Repo, sha: str, files: dict[str, bytes], name: str, path: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content, commit = files[path], {"X-Repo-Commit": sha}
        if not path.endswith(LARGE):
            return self._content(content, {**commit, "ETag": f'"{_git_hash(content)}"'})
        digest = _sha256(content)
        self.hub.uploads.setdefault(digest, content)
        self.send_response(302)
        for header, value in {
            **commit,
            "Location": f"{self.hub.storage}/{digest}",
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Content-Length": "0",
        }.items():
            self.send_header(header, value)
        self.end_headers()

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        if "Range" in self.headers:
            self.hub.served.append(f"from {first}")
            whole = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", whole)
        rest = content[first:]
        for name, value in {**headers, "Content-Length": str(len(rest))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path.startswith("/storage") and self.hub.halfway is not None:
            half = len(rest) // 2
            self.wfile.write(rest[:half])
            self.wfile.flush()
            if not self.hub.halfway():
                self.close_connection = True
                return
            rest = rest[half:]
        try:
            self.wfile.write(rest)
        except OSError:  # who asked is gone
            self.close_connection = True

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._is_known:
            return self._refuse(401, "", "Invalid username or password.")
        if asked["organization"] != OWNER:
            return self._refuse(403, "", "You don't have the rights to create a model there")
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repos:
            return self._json({"error": "You already created this model repo", "url": url}, 409)
        self.hub.repo(name, private=asked.get("visibility") == "private")
        self._json({"url": url, "name": name})

    def _branch(self, repo: Repo, branch: str) -> None:
        if branch in repo.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repo.branches[branch] = repo.branches["main"]
        self._json({})

    def _preupload(self) -> None:
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in paths]
        files = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]
        self._json({"files": files})

    def _batch(self) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.storage}/{asked['oid']}"}}
            known = asked["oid"] in self.hub.uploads
            objects.append({**asked, **({} if known else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, branch: str, owner: str, name: str) -> None:
        files = dict(repo.commits[repo.branches[branch]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repo.commit(files, branch)
        url = f"{self.hub.url}/{owner}/{name}/commit/{sha}"
        self._json({"success": True, "commitOid": sha, "commitUrl": url})


def greedy(model: Any) -> list[int]:
    """The likeliest codes of class 3, of a model that `lgpl.load` has opened."""
    inputs, likeliest = model.module.model.condition.parse("3"), Sampling(temperature=0.0)
    return model.module.sample_codes(inputs, likeliest, [0]).flatten().tolist()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
