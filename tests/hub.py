"""A small Hub on this machine: what huggingface_hub asks for a repository's files, over files that a test made."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".tar", ".parquet")  # kept by sha256, as git-lfs does


class Hub:
    """``files``: by (kind, OWNER/NAME), path -> content. ``broken``: paths that are sent with another content; ``cut``: paths whose
    connection ends after so many bytes, once. ``sent``: what was sent, path -> bytes. ``commit``: of every repository now.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.broken: set[str] = set()
        self.cut: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.commit = COMMIT
        self.url = ""

    def add(self, kind: str, name: str, **files: bytes) -> None:
        self.files[kind, name] = files

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": sha1}
        if path.endswith(LARGE):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            wanted = json.loads(asked)["paths"] if asked.startswith("{") else re.findall(r"paths=([^&]+)", asked)
            found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/paths-info/.+", self._path)
            assert found is not None, self._path
            files = hub.files.get((found[1], found[2]), {})
            self._json([hub.entry(path, files[path]) for path in map(unquote, wanted) if path in files])

        @property
        def _path(self) -> str:
            return unquote(urlparse(self.path).path)

        def _answer(self, body: bool) -> None:
            if self._path == "/":
                self._json({})
            elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+)(?:/(.*))?)?", self._path):
                self._about(*found.groups())
            elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._path):
                self._file("dataset" if found[1] else "model", found[2], found[4], found[3], body)
            else:
                self._refuse(404)

        def _about(self, kind: str, name: str, what: str | None, _: str | None, below: str | None) -> None:
            files = hub.files.get((kind, name))
            if files is None:
                self._refuse(404, "RepoNotFound")
            elif what == "tree":
                inside = {path: content for path, content in files.items() if not below or path.startswith(f"{below}/")}
                folders = {path.rpartition("/")[0] for path in inside} - {"", below or ""}
                entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
                self._json([*entries, *(hub.entry(path, content) for path, content in inside.items())])
            else:
                self._json({"id": name, "sha": hub.commit, "siblings": [{"rfilename": path} for path in files]})

        def _file(self, kind: str, name: str, path: str, revision: str, body: bool) -> None:
            content = hub.files.get((kind, name), {}).get(path)
            if content is None:
                self._refuse(404, "EntryNotFound" if (kind, name) in hub.files else "RepoNotFound")
                return
            entry = hub.entry(path, content)
            tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
            if path in hub.broken:
                content = bytes(len(content))
            start, end = 0, len(content)
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(found[1]), int(found[2]) + 1 if found[2] else end
            self.send_response(206 if (start, end) != (0, len(content)) else 200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", revision if re.fullmatch("[0-9a-f]{40}", revision) else hub.commit)
            self.end_headers()
            if body:
                part = content[start:end]
                if path in hub.cut:
                    part = part[: hub.cut.pop(path)]
                    self.close_connection = True
                hub.sent[path] = hub.sent.get(path, 0) + len(part)
                self.wfile.write(part)

        def _json(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _refuse(self, status: int, code: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Answer


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
