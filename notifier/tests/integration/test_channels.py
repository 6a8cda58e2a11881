"""Telegram and Discord over real HTTP: what each answer means, and that no secret is in any error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs

import pytest
from marketflow_notifier.channels import Away, Broken, Channel, Discord, Refused, Telegram
from marketflow_stack.testing import free_port

TOKEN, HOOK = "1234:very-secret", "hook-secret"
TIMEOUT = 2.0


class Server:
    """Answers with what is prepared, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, b"{}")
        self.headers: dict[str, str] = {}
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.paths.append(self.path)
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                status, body = outer.answer
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["telegram", "discord"])
def channel(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    monkeypatch.setenv("PTB_TIMEDELTA", "true")
    channel = make(request.param, server.url)
    yield channel
    channel.close()


def make(name: str, url: str) -> Channel:
    if name == "telegram":
        return Telegram(f"{url}/bot", TOKEN, "42", TIMEOUT)
    return Discord(f"{url}/api/webhooks/1/{HOOK}", TIMEOUT)


def telegram_error(code: int, description: str, **parameters: int) -> tuple[int, bytes]:
    body = {"ok": False, "error_code": code, "description": description}
    return code, json.dumps(body | ({"parameters": parameters} if parameters else {})).encode()


SENT = {
    "ok": True,
    "result": {"message_id": 1, "date": 1, "chat": {"id": 42, "type": "private"}, "text": "x"},
}


def test_a_message_arrives_as_it_is(channel: Channel, server: Server) -> None:
    server.answer = (200, json.dumps(SENT).encode())
    channel.send("🟢 BUY <b>_x_</b> & more\nsecond line")
    if channel.name == "telegram":
        assert server.paths == [f"/bot{TOKEN}/sendMessage"]
        form = parse_qs(server.bodies[0].decode())
        assert form["text"] == ["🟢 BUY <b>_x_</b> & more\nsecond line"]
        assert form["chat_id"] == ["42"]
        assert "parse_mode" not in form
    else:
        assert server.paths == [f"/api/webhooks/1/{HOOK}?wait=true"]
        assert json.loads(server.bodies[0]) == {
            "content": "🟢 BUY <b>_x_</b> & more\nsecond line",
            "allowed_mentions": {"parse": []},
        }


@pytest.mark.parametrize("status", [500, 502, 503, 409])
def test_a_server_error_means_away(channel: Channel, server: Server, status: int) -> None:
    server.answer = (status, b"<html>no</html>" if status == 502 else b'{"description": "busy"}')
    with pytest.raises(Away) as error:
        channel.send("x")
    assert error.value.seconds is None


def test_429_tells_for_how_long(channel: Channel, server: Server) -> None:
    if channel.name == "telegram":
        server.answer = telegram_error(429, "Too Many Requests: retry after 7", retry_after=7)
    else:
        server.answer = (429, b'{"message": "rate limited", "retry_after": 7.0, "global": false}')
    with pytest.raises(Away) as error:
        channel.send("x")
    assert error.value.seconds == 7.0


def test_429_without_a_body_goes_by_the_header(server: Server) -> None:
    server.answer, server.headers = (429, b"slow"), {"Retry-After": "3"}
    channel = make("discord", server.url)
    with pytest.raises(Away) as error:
        channel.send("x")
    assert error.value.seconds == 3.0
    channel.close()


def test_400_means_refused(channel: Channel, server: Server) -> None:
    server.answer = telegram_error(400, "Bad Request: message text is empty")
    with pytest.raises(Refused, match="essage text is empty"):
        channel.send("x")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_only_a_person_can_mend_names_the_setting_and_not_the_secret(
    channel: Channel, server: Server, status: int
) -> None:
    server.answer = telegram_error(status, f"no good: {TOKEN} {HOOK}")
    with pytest.raises(Broken) as error:
        channel.send("x")
    text = str(error.value)
    assert "set MARKETFLOW_NOTIFIER_" in text
    assert (TOKEN if channel.name == "telegram" else HOOK) not in text


def test_a_group_that_moved_names_its_new_id(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = telegram_error(400, "group chat was upgraded", migrate_to_chat_id=-100777)
    channel = make("telegram", server.url)
    with pytest.raises(Broken, match="set MARKETFLOW_NOTIFIER_TELEGRAM_CHAT_ID to -100777"):
        channel.send("x")
    channel.close()


@pytest.mark.parametrize("name", ["telegram", "discord"])
def test_nobody_there_means_away_and_shows_no_secret(name: str) -> None:
    channel = make(name, f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Away) as error:
        channel.send("x")
    assert TOKEN not in str(error.value)
    assert HOOK not in str(error.value)
    channel.close()
