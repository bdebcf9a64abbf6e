"""A bucket in the test's own process: the list and read requests of S3's protocol, which Google's service takes, too.

with fake_bucket() as bucket:
    bucket.upload(policies / "200", "run/policies/200")
    ... bucket.url("s3", "run/policies") ...

Programs find it, and its credentials, in the environment variables `bucket.environ`.
"""

import contextlib
import hashlib
import re
import threading
import urllib.parse
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from serving.policy_settings import BucketUrl

FOLDER = "run/policies"  # in which tests publish
_CREDENTIALS = ("AWS4-HMAC-SHA256 Credential=fake-key/", "Bearer fake-token")


class FakeBucket(ThreadingHTTPServer):
    """The bucket. Its objects and its faults may be changed at any time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = f"bucket-{self.server_port}"
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []  # "list PREFIX" or "get KEY"
        self.page = 3  # objects and folders in a reply to a list request; real services send 1,000
        self.before: Callable[[str], object] = lambda _: None  # called with every request; may change all of this
        self.fail_next = 0  # requests that get 503
        self.statuses: dict[str, int] = {}  # instead of 200, for requests that begin like this
        self.is_down = False  # connections are closed without a reply
        self.cut: set[str] = set()  # objects of which the next reply ends in the middle
        self.answers = threading.Event()  # while it is not set, there is no reply to requests that begin like `held`
        self.answers.set()
        self.held = ""
        self.waits = threading.Event()  # set when a request has waited for it

    @property
    def environ(self) -> dict[str, str]:
        address = f"http://127.0.0.1:{self.server_port}"
        aws = {"ENDPOINT": address, "ACCESS_KEY_ID": "fake-key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
        google = {"BASE_URL": address, "BEARER_TOKEN": "fake-token"}
        return {f"AWS_{name}": value for name, value in aws.items()} | {
            f"GOOGLE_{name}": value for name, value in google.items()
        }

    def url(self, scheme: str, folder: str) -> BucketUrl:
        return BucketUrl(f"{scheme}://{self.name}/{folder}")

    def upload(self, folder: Path, to: str) -> None:
        """Copy the files of a folder, its manifest last."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == "manifest.json"):
            self.objects[f"{to}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def count(self, request: str) -> int:
        """Return the number of requests that begin like this."""
        return sum(each.startswith(request) for each in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnects."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        bucket, url = self.server, urllib.parse.urlsplit(self.path)
        assert isinstance(bucket, FakeBucket)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        name, _, key = urllib.parse.unquote(url.path).removeprefix("/").partition("/")
        request = f"list {query.get('prefix', '')}" if "list-type" in query else f"get {key}"
        bucket.requests.append(request)
        bucket.before(request)
        if not bucket.answers.is_set() and request.startswith(bucket.held):
            bucket.waits.set()
            bucket.answers.wait()
        if bucket.is_down:
            self.close_connection = True
        elif bucket.fail_next:
            bucket.fail_next -= 1
            self._send(503, b"<Error><Code>SlowDown</Code></Error>")
        elif not self.headers.get("Authorization", "").startswith(_CREDENTIALS):
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif name != bucket.name:
            self._send(404, b"<Error><Code>NoSuchBucket</Code></Error>")
        elif status := next((status for start, status in bucket.statuses.items() if request.startswith(start)), 0):
            self._send(status, b"<Error><Code>Fault</Code></Error>")
        elif "list-type" in query:
            self._send(200, _list(bucket.objects, query, page=bucket.page).encode())
        elif key not in bucket.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._send(200, bucket.objects[key], cut=key in bucket.cut)
            bucket.cut.discard(key)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
        """Write nothing to stderr."""

    def _send(self, status: int, content: bytes, *, cut: bool = False) -> None:
        tag, size = _tag(content), len(content)
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if part else status)
        if part:
            self.send_header("Content-Range", f"bytes {part[1]}-{part[2]}/{size}")
            content = content[int(part[1]) : int(part[2]) + 1]
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut


def _list(objects: dict[str, bytes], query: dict[str, str], *, page: int) -> str:
    """Return a page of the objects with a prefix, and of the folders in it if there is a delimiter."""
    prefix, after, delimiter = query.get("prefix", ""), query.get("continuation-token", ""), query.get("delimiter", "")
    inside = {key: bool(delimiter) and delimiter in key[len(prefix) :] for key in objects if key.startswith(prefix)}
    folders = {_folder(key, prefix, delimiter) for key, is_deeper in inside.items() if is_deeper}
    entries = sorted({*folders, *(key for key, is_deeper in inside.items() if not is_deeper)})
    rest = [entry for entry in entries if entry > after]
    body = "".join(_describe_folder(each) if each in folders else _describe(each, objects) for each in rest[:page])
    if len(rest) > page:
        body += f"<NextContinuationToken>{escape(rest[page - 1])}</NextContinuationToken>"
    truncated = str(len(rest) > page).lower()
    return f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{body}</ListBucketResult>"


def _folder(key: str, prefix: str, delimiter: str) -> str:
    """Return the folder in `prefix` that a key is in, or whose marker the key is."""
    return f"{prefix}{key.removeprefix(prefix).split(delimiter)[0]}{delimiter}"


def _describe_folder(folder: str) -> str:
    return f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>"


def _describe(key: str, objects: dict[str, bytes]) -> str:
    content = objects[key]
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{escape(_tag(content))}</ETag><Size>{len(content)}</Size></Contents>"
    )


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'


@contextlib.contextmanager
def fake_bucket() -> Generator[FakeBucket]:
    """Serve an empty bucket until the context ends."""
    with FakeBucket() as bucket:
        thread = threading.Thread(target=bucket.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield bucket
        finally:
            bucket.answers.set()
            bucket.shutdown()
            thread.join()
