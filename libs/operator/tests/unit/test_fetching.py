"""Dumps are fetched whole or not at all: from a server that breaks off, lies or has nothing; and from a folder."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from marketflow_operator.audit.topics import CannotRead
from marketflow_operator.dumps import BadDump, Dump, dumps_between
from marketflow_operator.fetching import Folder, NoDump, Site
from marketflow_stack.processes import free_port


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; of each answer it sends ``most`` bytes and then breaks off."""

    def __init__(self, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.most: int | None = None
        self.ranges = ranges
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def offer(self, dump: Dump, data: bytes, proof: str | None = None) -> None:
        self.files[f"/{dump.path}"] = data
        text = f"{hashlib.sha256(data).hexdigest()}  {dump.name}\n" if proof is None else proof
        self.files[f"/{dump.path}.CHECKSUM"] = text.encode()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if first and first >= len(data):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        rest = data[first:]
        most = self.server.most if not self.path.endswith(".CHECKSUM") else None
        self.wfile.write(rest[:most])
        if most is not None and most < len(rest):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(params=[True, False], ids=["ranges", "no-ranges"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    found = Server(request.param)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def dump() -> Dump:
    return dumps_between("BTCUSDT", "2024-08-08", "2024-08-08")[0]


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    found = Site(server.url, tmp_path / "fetched", pause=0)
    yield found
    found.close()


DATA = bytes(range(256)) * 400


def test_a_dump_is_fetched_proved_and_removed_once_it_is_done(server: Server, site: Site, dump: Dump) -> None:
    server.offer(dump, DATA)
    said: list[str] = []
    path, detail = site.fetch(dump, said.append)
    assert (path.read_bytes(), detail) == (DATA, "")
    assert said[-1] == "BTCUSDT-trades-2024-08-08.zip: 0.1 of 0.1 MB fetched"
    assert site.fetch(dump, said.append) == (path, "")
    assert [one for one, _ in server.asked].count(f"/{dump.path}") == 1  # what is there and right is not fetched again
    site.done(path)
    assert list(path.parent.iterdir()) == []


def test_a_download_that_breaks_off_goes_on_from_there_in_a_later_run_too(
    server: Server, site: Site, dump: Dump, tmp_path: Path
) -> None:
    server.offer(dump, DATA)
    server.most = 10_000
    with pytest.raises(CannotRead, match="bytes are here, run it again to go on from there"):
        site.fetch(dump, lambda _: None)
    ranges = [wanted for path, wanted in server.asked if path == f"/{dump.path}"]
    assert ranges == [None, "bytes=10000-", *([f"bytes={n}0000-" for n in (2, 3, 4)] if server.ranges else ranges[2:])]
    server.asked.clear()
    server.most = None
    later = Site(server.url, tmp_path / "fetched", pause=0)
    path, _ = later.fetch(dump, lambda _: None)
    later.close()
    assert path.read_bytes() == DATA
    assert [wanted for path, wanted in server.asked if path == f"/{dump.path}"] == [
        "bytes=50000-" if server.ranges else "bytes=10000-"
    ]


def test_what_is_here_of_another_version_is_thrown_away_and_fetched_anew(
    server: Server, site: Site, dump: Dump, tmp_path: Path
) -> None:
    server.offer(dump, DATA)
    part = tmp_path / "fetched" / f"{dump.name}.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 5_000)
    path, _ = site.fetch(dump, lambda _: None)
    assert path.read_bytes() == DATA


def test_bytes_that_are_not_the_published_ones_are_refused(server: Server, site: Site, dump: Dump) -> None:
    server.offer(dump, DATA, proof=f"{'0' * 64}  {dump.name}\n")
    with pytest.raises(BadDump, match=f"its SHA-256 is {hashlib.sha256(DATA).hexdigest()}, and its .CHECKSUM says 000"):
        site.fetch(dump, lambda _: None)
    server.offer(dump, DATA, proof="<html>")
    with pytest.raises(BadDump, match=r"it says '<html>'; expected a SHA-256 and BTCUSDT-trades-2024-08-08\.zip"):
        site.fetch(dump, lambda _: None)


def test_a_dump_that_does_not_exist_and_a_server_that_does_not_answer_are_told(
    server: Server, site: Site, dump: Dump, tmp_path: Path
) -> None:
    with pytest.raises(NoDump, match=r"\.CHECKSUM does not exist: is the symbol right"):
        site.fetch(dump, lambda _: None)
    nobody = Site(f"http://127.0.0.1:{free_port()}", tmp_path, pause=0)
    with pytest.raises(CannotRead, match=r"cannot fetch http://127\.0\.0\.1:"):
        nobody.fetch(dump, lambda _: None)
    nobody.close()


def test_a_folder_gives_what_it_has_and_says_what_is_not_proved(dump: Dump, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(NoDump, match=f"{dump.name} is not in {tmp_path}"):
        folder.fetch(dump, lambda _: None)
    path = tmp_path / dump.name
    path.write_bytes(DATA)
    assert folder.fetch(dump, lambda _: None) == (path, f"no {dump.name}.CHECKSUM beside it: its bytes are not proved")
    proof = tmp_path / f"{dump.name}.CHECKSUM"
    proof.write_text(f"{hashlib.sha256(DATA).hexdigest()}  {dump.name}\n")
    assert folder.fetch(dump, lambda _: None) == (path, "")
    path.write_bytes(DATA + b".")
    with pytest.raises(BadDump, match=r"fetch it again"):
        folder.fetch(dump, lambda _: None)
    folder.done(path)
    assert path.exists()
