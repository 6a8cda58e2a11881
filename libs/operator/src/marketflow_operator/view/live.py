"""Keeps the board up to date in the background and shows it, until what is watched has come to its end.

Edge of the view. Must never change anything in the system, nor end it: it only looks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import httpx
from rich.console import Console
from rich.live import Live

from ..audit.topics import CannotRead, TopicReader
from ..targets import Targets
from .board import Board
from .scrape import Scraper
from .screen import draw, progress_line

__all__ = ["Watch", "show"]

READ_EVERY: Final = 0.2
SCRAPE_EVERY: Final = 1.0
DRAW_EVERY: Final = 0.25
LINE_EVERY: Final = 5.0
"""Seconds between two rounds of each kind."""


class Watch:
    """Feeds a board from a thread of its own; as a context manager it runs while the body does."""

    def __init__(self, targets: Targets, board: Board) -> None:
        self.board = board
        self.lock = threading.Lock()
        self._targets = targets
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._messages = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(35)

    def _run(self) -> None:
        scraper = Scraper(self._targets.services)
        http = httpx.Client(timeout=2.0, trust_env=False)
        topics: TopicReader | None = None
        scraped = 0.0
        try:
            while not self._stop.is_set():
                # Whatever does not answer now is asked again in the next round; the view goes on with the rest.
                with suppress(CannotRead):
                    topics = topics or TopicReader(self._targets.kafka, on_record=self._take, keep=False)
                    topics.advance()
                now = time.monotonic()
                if now - scraped >= SCRAPE_EVERY:
                    scraped = now
                    rows = scraper.scrape(now)
                    with self.lock:
                        self.board.services = rows
                    with suppress(httpx.HTTPError, ValueError, KeyError):
                        self._messages_of(http)
                if self._targets.simulated:
                    with suppress(httpx.HTTPError, ValueError):
                        market: dict[str, Any] = http.get(f"{self._targets.exchange}/sim/market").json()
                        with self.lock:
                            self.board.take_market(market)
                self._stop.wait(READ_EVERY)
        finally:
            if topics is not None:
                topics.close()
            scraper.close()
            http.close()

    def _take(self, seen: Any) -> None:
        with self.lock:
            self.board.take(seen)

    def _messages_of(self, http: httpx.Client) -> None:
        rows: list[dict[str, Any]] = http.get(f"{self._targets.recorder}/recorded").json()
        with self.lock:
            self.board.take_messages([(row["channel"], row["text"]) for row in rows[self._messages :]])
        self._messages = len(rows)


def show(console: Console, watch: Watch, done: Callable[[], bool], title: str = "") -> None:
    """Draw until ``done``; in plain lines where the output is no terminal. KeyboardInterrupt passes through."""
    if not console.is_terminal:
        _lines(console, watch, done)
        return

    def picture() -> Any:
        with watch.lock:
            return draw(watch.board, console.width, console.height, title)

    with Live(picture(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not done():
            live.update(picture(), refresh=True)
            time.sleep(DRAW_EVERY)
        live.update(picture(), refresh=True)


def _lines(console: Console, watch: Watch, done: Callable[[], bool]) -> None:
    said, last = 0.0, ""
    while not done():
        if time.monotonic() - said >= LINE_EVERY:
            with watch.lock:
                line = progress_line(watch.board)
            if line != last:
                console.print(line)
            said, last = time.monotonic(), line
        time.sleep(DRAW_EVERY)
    with watch.lock:
        console.print(progress_line(watch.board))
