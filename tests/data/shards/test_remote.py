"""Files of a web server that fails, refuses, knows no ranges, or whose addresses have a query: read, or one true line."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shard_files import decode, pair, read_bytes, refusal, shown, write_bytes, write_parquet, write_tar

from tunalab.data.documents import Reject
from tunalab.data.shards import files
from tunalab.data.shards.files import find_files, open_file, read_range, stat_file
from tunalab.data.shards.schemas import open_text, open_webdataset
from tunalab.errors import UserError
from tunalab.settings.schema import TextConfig, WebDatasetConfig

DATA = bytes(range(256)) * 40
SECRET = "0123456789abcdef-signature"


class Server(ThreadingHTTPServer):
    """``files``: path -> content. ``faults``: what happens to the next requests for content, one by one; ``always``: to all."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/a.bin": DATA}
        self.faults: list[Any] = []
        self.always: Any = None
        self.heads = True  # faults are for content, not for HEAD
        self.ranges = True
        self.asked: list[str] = []

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is none."""

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, head = self.server, self.command == "HEAD"
        server.asked.append(f"{self.command} {self.path}")
        fault = server.always
        if not (head and server.heads) and server.faults:
            fault = server.faults.pop(0)
        if head and server.heads:
            fault = None
        content = server.files.get(self.path.partition("?")[0])
        if fault is None and content is None:
            fault = 404
        if isinstance(fault, tuple | int):
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            return
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault == "silence":
            time.sleep(0.5)
        assert content is not None
        start, end = 0, len(content)
        requests = self.headers.get("Range")
        if requests and server.ranges:
            first, _, last = requests.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, end)
        self.send_response(206 if requests and server.ranges else 200)
        if requests and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("ETag", f'"{len(content)}"')
        body = content[start:end]
        if fault == "few":  # and says so: a proxy that cuts
            body = body[: len(body) // 2]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            self.wfile.write(body[: len(body) // 2] if fault == "short" else body)
        if fault == "short":
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited for between tries, without waiting."""
    slept: list[float] = []
    monkeypatch.setattr(files, "_sleep", slept.append)
    monkeypatch.setattr(files, "_SILENCE", 0.2)
    return slept


PASSING = [408, 429, 500, 502, 503, 504, "reset", "short", "few", "silence"]


@pytest.mark.parametrize("fault", PASSING)
def test_what_fails_once_is_read_at_the_second_try(server: Server, waits: list[float], fault: Any) -> None:
    server.faults = [fault]
    assert read_range(server.url("/a.bin"), 700, 900) == DATA[700:900]
    # aiohttp asks again by itself, at once, where a kept connection is reset.
    assert len(waits) == 1 or fault == "reset" and not waits
    assert all(0 < wait < 5 for wait in waits)


@pytest.mark.parametrize("fault", [503, "reset", "short"])
def test_a_file_that_is_read_through_survives_faults_in_its_middle(
    server: Server, waits: list[float], monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(files, "_BUFFER", 1000)
    server.faults = [None, fault, None, fault, fault, None]
    with open_file(server.url("/a.bin")) as stream:
        assert stream.read(100) == DATA[:100]
        assert stream.read() == DATA[100:]
        stream.seek(-20, 2)
        assert stream.read(50) == DATA[-20:]
        stream.seek(len(DATA) + 5)
        assert stream.read(1) == b""
    assert len(waits) == 3 or fault == "reset"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (503, "answers 503 Service Unavailable, 7 times"),
        (429, "answers 429 Too Many Requests, 7 times"),
        ("few", "breaks off: it sends 100 of 200 bytes, 7 times"),
        ("short", "cannot be reached: .*7 times"),
        ("reset", "cannot be reached: .*7 times"),
        ("silence", "does not answer within 0 s, 7 times"),
    ],
)
def test_what_goes_on_failing_is_one_line_after_growing_waits(server: Server, waits: list[float], fault: Any, words: str) -> None:
    server.always = fault
    url = server.url(f"/a.bin?X-Signature={SECRET}&part=1").replace("//", f"//me:{SECRET}@")
    with pytest.raises(UserError, match=words) as caught:
        read_range(url, 700, 900)
    message = str(caught.value)
    assert message.startswith(
        f"http://***@127.0.0.1:{server.server_port}/a.bin: its server " if "reached" not in words else "http://***@"
    )
    assert SECRET not in message and "?" not in message and "\n" not in message
    assert len(waits) == files.TRIES - 1 and 15 < sum(waits) < 120
    assert waits == sorted(waits) and waits[-1] > 4 * waits[0]


def test_a_server_that_is_not_there(waits: list[float]) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.tar"
        message = refusal(lambda: find_files([url], "text/a"), UserError)
    assert message.startswith(f"text/a: {url}: it cannot be reached: ") and message.endswith(", 7 times")


@pytest.mark.parametrize("status", [401, 403])
def test_a_link_that_has_expired_is_named_at_once(server: Server, waits: list[float], status: int) -> None:
    url = server.url(f"/a.bin?sig={SECRET}")
    server.always = status
    server.heads = False
    expected = f"{server.url('/a.bin')}: its server refuses it ({status} "
    for call in (lambda: read_range(url, 0, 5), lambda: find_files([url], "text/a")):
        message = refusal(call, UserError)
        assert expected in message and "a signed link that has expired" in message and SECRET not in message
    assert waits == []


@pytest.mark.parametrize("status", [400, 405, 501])
def test_other_answers_are_quoted_at_once(server: Server, waits: list[float], status: int) -> None:
    server.always = status
    assert f"its server answers {status} " in refusal(lambda: read_range(server.url("/a.bin"), 0, 5), UserError)
    assert waits == []


def test_what_is_gone_is_gone(server: Server, waits: list[float]) -> None:
    url = server.url("/none.bin")
    assert refusal(lambda: find_files([url], "text/a"), UserError) == f"text/a: no such file: {url}"
    assert "cannot be read" in refusal(lambda: read_range(url, 0, 5), Reject)
    assert stat_file(url) is None
    server.files["/a.bin"] = DATA[:800]
    assert "is shorter than it was" in refusal(lambda: read_range(server.url("/a.bin"), 700, 900), Reject)
    assert waits == []


def test_a_server_that_fails_while_files_are_found(server: Server, waits: list[float]) -> None:
    server.heads, server.faults = False, [503, 503]  # HEAD, then GET in its place
    (file,) = find_files([server.url("/a.bin")], "text/a")
    assert file.size == len(DATA) and "ETag" in file.stamp and len(waits) == 1


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("17", 17, 17),
        ("0", 0.1, 3),
        ("99999", 300, 300),
        (250.0, 100, 250),
        (-50.0, 0.1, 3),
        ("soon", 0.1, 3),
        ("-5", 0.1, 3),
    ],
)
def test_a_server_is_waited_for_as_it_asks(server: Server, waits: list[float], asked: Any, least: float, most: float) -> None:
    """A number of seconds, or a date: so many seconds from now."""
    server.faults = [(503, {"Retry-After": in_seconds(asked) if isinstance(asked, float) else asked})]
    assert read_range(server.url("/a.bin"), 0, 5) == DATA[:5]
    assert least <= waits[0] <= most and len(waits) == 1


def test_a_server_without_ranges_is_named_as_one(server: Server, waits: list[float]) -> None:
    server.ranges = False
    message = refusal(lambda: read_range(server.url(f"/a.bin?token={SECRET}"), 700, 900), UserError)
    assert message.startswith(f"{server.url('/a.bin')}: its server does not give parts of a file (HTTP ranges)")
    assert waits == []


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Server:
    rows = [{"text": text} for text in ("one", "two", "three")]
    server.files["/a.tar"] = read_bytes(write_tar(f"{tmp_path}/a.tar", [pair(number) for number in range(3)]))
    server.files["/a.parquet"] = read_bytes(write_parquet(f"{tmp_path}/a.parquet", pa.schema([("text", pa.string())]), rows))
    server.files["/a.jsonl"] = b'{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'
    return server


@pytest.mark.parametrize("file", ["a.parquet", "a.jsonl"])
@pytest.mark.parametrize("faults", [[], [503, None, "reset", None, 503]])
def test_texts_behind_addresses_with_a_query(served: Server, waits: list[float], file: str, faults: list[Any]) -> None:
    served.faults = faults
    corpus = open_text("text/a", TextConfig(urls=[served.url(f"/{file}?sv=1&sig={SECRET}")], window=0), 0)
    assert [shown(corpus.document(index))[1] for index in range(3)] == [(text, True) for text in ("one", "two", "three")]
    renewed = open_text("text/a", TextConfig(urls=[served.url(f"/{file}?sv=1&sig=other-{SECRET}")], window=0), 0)
    assert renewed.fingerprint == corpus.fingerprint, "a new signature is no other file"
    served.always = 403
    with pytest.raises(UserError, match="expired") as caught:
        for index in range(3):
            open_text("text/a", TextConfig(urls=[served.url(f"/{file}?sv=1&sig={SECRET}")], window=0), 0).document(index)
    assert SECRET not in str(caught.value)


def test_tars_behind_addresses_with_a_query(served: Server, waits: list[float]) -> None:
    url = served.url(f"/a.tar?sig={SECRET}")
    corpus = open_webdataset("webdataset/a", WebDatasetConfig(urls=[url], window=0), decode, "", 0)
    assert corpus.rows == 3 and shown(corpus.document(0))[0] == "caption"
    assert any(requests.startswith("HEAD /a.tar.idx?") for requests in served.asked), "the index beside it has the same query"
    served.files["/a.tar"] = served.files["/a.tar"][:512]
    message = refusal(lambda: corpus.document(2), Reject)
    assert message.startswith(f"{served.url('/a.tar')} sample 3: ") and SECRET not in message


def test_an_index_that_the_server_refuses_to_show_is_none(served: Server, waits: list[float]) -> None:
    """Stores answer 403 for what is not there to those who may not list."""
    served.heads = False
    served.always = 403
    assert stat_file(served.url("/a.tar.idx")) is None and waits == []


def test_local_files_are_not_tried_again(tmp_path: Path, waits: list[float]) -> None:
    url = write_bytes(str(tmp_path / "what?.bin"), b"0123")
    assert find_files([url], "x")[0].url == url and read_range(url, 1, 3) == b"12"
    assert "cannot be read" in refusal(lambda: read_range(str(tmp_path / "none"), 0, 1), Reject) and waits == []
