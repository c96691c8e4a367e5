"""The bytes of a URL: http by urllib, s3 and the like by fsspec, `pipe:` by a shell."""

import base64
import http.client
import shutil
import string
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

import fsspec

PIECE = 2**20  # bytes copied at a time
BUSY = (408, 425, 429)  # answers of a server that another try may change
HTTP, S3, GCS = ("http", "https"), ("s3", "s3a"), ("gs", "gcs")


class Unreachable(OSError):
    """A shard could not be fetched; the message is the cause."""


def is_url(path: str) -> bool:
    return "://" in path or path[:5].lower() == "pipe:"


def scheme(path: str) -> str:
    """`https` for `HTTPS://host/a.tar`, `pipe` for `pipe:COMMAND`, empty for a path."""
    return path.partition(":")[0].lower() if is_url(path) else ""


def transfer(url: str, to: BinaryIO, timeout: float) -> str | None:
    """Write the whole body of a URL to a new file and give its ETag, where the server has one; an
    Unreachable where another try would not help, such as for what is not there. Anything else that
    the store's client raises may pass."""
    kind = scheme(url)
    if kind in HTTP:
        size, etag = _http(url, to, timeout)
    elif kind != "pipe":
        size, etag = _by_fsspec(kind, url, to, timeout)
    else:
        size, etag = _by_shell(url.partition(":")[2], to)
    if size is not None and to.tell() != size:
        raise OSError(f"the connection broke after {to.tell()} of {size} bytes")
    return etag


def _by_shell(command: str, to: BinaryIO) -> tuple[None, None]:
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        shutil.copyfileobj(process.stdout, to, PIECE)
    if process.returncode:
        raise OSError(f"the command ended with status {process.returncode}")
    return None, None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, as often as urllib does, which would also follow to ftp."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, to: str
    ) -> Any:  # type: ignore[override]
        if scheme(to) not in HTTP:
            raise Unreachable(f"the server redirects to {to}, which is no http(s)://")
        return super().redirect_request(req, fp, code, msg, headers, to)


def _http(url: str, to: BinaryIO, timeout: float) -> tuple[int | None, str | None]:
    """By urllib: fsspec's client calls every fault a file that is not there."""
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(_request(url), timeout=timeout) as body:
            shutil.copyfileobj(body, to, PIECE)
            size, etag = body.headers.get("Content-Length"), body.headers.get("ETag")
    except urllib.error.HTTPError as error:
        if error.code < 500 and error.code not in BUSY:
            raise Unreachable(f"the server answers {error.code} {error.reason}") from error
        raise
    except (http.client.InvalidURL, ValueError) as error:
        raise Unreachable(f"no URL ({error})") from error
    return size and int(size), etag


def _request(url: str) -> urllib.request.Request:
    """Spaces and letters of any language are written as servers know them, and `user:password@`,
    which urllib takes for a host, goes into a header that no redirect hands on."""
    url = urllib.parse.quote(url, safe=string.punctuation)
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if not user:
        return urllib.request.Request(url)
    request = urllib.request.Request(parts._replace(netloc=host).geturl())
    token = base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
    request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _by_fsspec(kind: str, url: str, to: BinaryIO, timeout: float) -> tuple[int | None, str | None]:
    limits: dict[str, Any] = {}  # what each store's client calls a timeout
    if kind in S3:
        limits["config_kwargs"] = {"connect_timeout": timeout, "read_timeout": timeout}
    elif kind in GCS:
        limits["requests_timeout"] = timeout
    with fsspec.open(kind + url[len(kind) :], "rb", **limits).open() as body:
        shutil.copyfileobj(body, to, PIECE)
        details = getattr(body, "details", None)
    known = details if isinstance(details, dict) else {}
    size = known.get("size")
    return size if isinstance(size, int) else None, known.get("ETag") or known.get("etag")
