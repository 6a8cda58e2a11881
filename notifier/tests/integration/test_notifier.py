"""The notifier as a process, on a real broker, writing to the stack's recorder."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from marketflow_common import codec, events
from marketflow_stack.testing import CreatedTopics, Program, Programs, ask, eventually, free_port

pytestmark = pytest.mark.broker
CHANNELS = ("telegram", "discord")
TOKEN, HOOK = "1234:very-secret-token", "very-secret-hook"


class Recorder(Program):
    """The stand-in for Telegram and Discord, and what it was sent."""

    def texts(self, channel: str) -> list[str]:
        return [message["text"] for message in ask(self.url + "/recorded") if message["channel"] == channel]

    def references(self, channel: str) -> list[str]:
        """Every reference in order of arrival; one that came twice is here twice."""
        return re.findall(r"\w+/\d+@\d+$", "\n".join(self.texts(channel)), re.MULTILINE)

    def fault(self, **fault: Any) -> None:
        ask(self.url + "/faults", fault, "POST")


class Feed:
    """Puts events into the topics in transactions, as the strategy and the executor do."""

    def __init__(self, topics: CreatedTopics) -> None:
        self._topics = topics
        self._producer = Producer(
            {
                "bootstrap.servers": topics.bootstrap,
                "transactional.id": f"{topics.prefix}feed",
                "linger.ms": 0,
                "log_level": 0,
            }
        )
        self._producer.init_transactions(30)
        self.due: list[str] = []

    def put(self, *rows: tuple[int, events.Event], commit: bool = True) -> None:
        """Each row: partition and event. References of the due ones are kept in ``due``."""
        placed: list[str] = []

        def delivered(error: Any, message: Any, event: events.Event) -> None:
            assert error is None
            topic = message.topic().removeprefix(self._topics.prefix)
            if isinstance(event, events.OrderRejected) or getattr(event, "signal_type", "HOLD") != "HOLD":
                placed.append(f"{topic}/{message.partition()}@{message.offset()}")

        self._producer.begin_transaction()
        for partition, event in rows:
            topic = "trading_signals" if isinstance(event, events.Signal) else "order_events"
            self._producer.produce(
                self._topics[topic],
                codec.encode(event),
                codec.key_of(event),
                partition,
                on_delivery=lambda e, m, event=event: delivered(e, m, event),
            )
        if commit:
            self._producer.commit_transaction(30)
            self.due += placed
        else:
            self._producer.flush()  # the records are in the log, and nobody may see them
            self._producer.abort_transaction(30)


def signal_of(kind: str) -> events.Signal:
    n = Decimal("1.5")
    return events.Signal(
        "s",
        "band",
        "p",
        "ETHUSDT",
        "1m",
        0,
        n,
        n,
        n,
        kind,
        1,
        {},
        ("the reason",),  # type: ignore[arg-type]
    )


def rejected(reason: str = "no balance") -> events.OrderRejected:
    return events.OrderRejected("main", "mf-1", "s1", "ETHUSDT", -2010, reason)


ACCEPTED = events.OrderAccepted("main", "mf-1", "s1", "ETHUSDT", 5, 1)


@pytest.fixture
def another_recorder(programs: Programs, tmp_path: Path) -> Callable[[], Recorder]:
    def start() -> Recorder:
        port = free_port()
        arguments = ["-m", "marketflow_stack.recorder", "--port", str(port), "--file", str(tmp_path / f"{port}.jsonl")]
        return programs.start(Recorder, "recorder", arguments, {}, port).wait_for("/health")

    return start


@pytest.fixture
def recorder(another_recorder: Callable[[], Recorder]) -> Recorder:
    return another_recorder()


@pytest.fixture
def feed(topics: CreatedTopics) -> Feed:
    return Feed(topics)


@pytest.fixture
def start(service: Callable[..., Program]) -> Callable[..., Program]:
    """``start(telegram, discord)`` starts a notifier that takes these URLs for the two."""

    def begin(telegram: str, discord: str, **settings: str) -> Program:
        return service(
            "notifier",
            NOTIFIER_TELEGRAM_URL=f"{telegram}/bot",
            NOTIFIER_TELEGRAM_TOKEN=TOKEN,
            NOTIFIER_TELEGRAM_CHAT_ID="42",
            NOTIFIER_DISCORD_WEBHOOK_URL=f"{discord}/api/webhooks/1/{HOOK}",
            NOTIFIER_BATCH_SECONDS="0.1",
            NOTIFIER_TIMEOUT_SECONDS="5",
            **settings,
        )

    return begin


@pytest.fixture
def notifier(start: Callable[..., Program], recorder: Recorder) -> Program:
    return start(recorder.url, recorder.url)


def burst(count: int) -> list[tuple[int, events.Event]]:
    """Records of all partitions and both topics, two of five due."""
    kinds = [signal_of("BUY"), rejected(), signal_of("HOLD"), ACCEPTED, ACCEPTED]
    return [(n % 3, kinds[n % 5]) for n in range(count)]


def test_all_that_is_due_arrives_once_in_both_channels_and_bursts_are_few_messages(
    recorder: Recorder, feed: Feed, notifier: Program
) -> None:
    feed.put(*burst(300))
    feed.put(*burst(50), commit=False)  # what was aborted was never said
    feed.put(*burst(10))
    assert len(feed.due) == 124
    for channel in CHANNELS:
        eventually(lambda: len(recorder.references(channel)) >= len(feed.due), timeout=60)  # noqa: B023
        assert Counter(recorder.references(channel)) == Counter(feed.due)
        limit = 4096 if channel == "telegram" else 2000
        texts = recorder.texts(channel)
        assert len(texts) <= 4 + sum(map(len, texts)) // (limit - 200)
        for partition in range(3):
            for topic in ("trading_signals", "order_events"):
                here = [r for r in recorder.references(channel) if r.startswith(f"{topic}/{partition}@")]
                assert here == sorted(here, key=lambda r: int(r.partition("@")[2]))
        sent = f'notifications_sent_total{{channel="{channel}"}}'
        assert eventually(lambda: notifier.metric(sent)) == len(feed.due)  # noqa: B023
        assert notifier.metric(f'notification_delay_seconds_count{{channel="{channel}"}}') == len(feed.due)
    assert notifier.answers("/readyz")


def test_after_a_kill_at_most_the_message_in_flight_comes_twice(
    recorder: Recorder, feed: Feed, notifier: Program
) -> None:
    killed_at = []
    for round_ in range(3):
        feed.put(*burst(250))
        want = len(recorder.texts("discord")) + 2 + round_
        eventually(lambda: len(recorder.texts("discord")) >= want, interval=0.002)  # noqa: B023
        notifier.kill()
        killed_at.append({channel: len(recorder.texts(channel)) for channel in CHANNELS})
        notifier.launch()
    for channel in CHANNELS:
        eventually(lambda: set(recorder.references(channel)) == set(feed.due), timeout=90)  # noqa: B023
        texts = recorder.texts(channel)
        repeated = {reference for reference, times in Counter(recorder.references(channel)).items() if times > 1}
        # Only lines of the last message before each kill may have come again.
        in_flight = "\n".join(texts[kill[channel] - 1] for kill in killed_at if kill[channel])
        assert repeated <= set(re.findall(r"\w+/\d+@\d+$", in_flight, re.MULTILINE))


def test_a_stop_in_the_middle_repeats_nothing(recorder: Recorder, feed: Feed, notifier: Program) -> None:
    feed.put(*burst(400))
    eventually(lambda: recorder.texts("discord"), interval=0.002)
    assert notifier.stop(20) == 0
    notifier.launch()
    for channel in CHANNELS:
        eventually(lambda: set(recorder.references(channel)) == set(feed.due), timeout=60)  # noqa: B023
        assert Counter(recorder.references(channel)) == Counter(feed.due)


def test_retry_after_is_honoured(recorder: Recorder, feed: Feed, notifier: Program) -> None:
    notifier.wait_ready()
    for channel in CHANNELS:
        recorder.fault(kind="retry_after", channel=channel, count=1, seconds=2)
    began = time.monotonic()
    feed.put((0, rejected()))
    for channel in CHANNELS:
        eventually(lambda: recorder.references(channel) == feed.due)  # noqa: B023
        assert time.monotonic() - began >= 2
        # One refusal and no more: nobody knocked while it was asked to wait.
        assert notifier.metric(f'notifications_failed_total{{channel="{channel}"}}') == 1


def test_a_lost_answer_and_server_errors_lose_nothing(recorder: Recorder, feed: Feed, notifier: Program) -> None:
    recorder.fault(kind="lost_answer", channel="telegram")
    recorder.fault(kind="error", channel="discord", count=2, status=503)
    feed.put(*burst(10))
    for channel in CHANNELS:
        eventually(lambda: set(recorder.references(channel)) == set(feed.due))  # noqa: B023
    assert Counter(recorder.references("discord")) == Counter(feed.due)


def test_a_text_that_is_refused_goes_out_in_short_form(recorder: Recorder, feed: Feed, notifier: Program) -> None:
    for channel in CHANNELS:
        recorder.fault(kind="error", channel=channel, count=1, status=400)
    feed.put((1, rejected("a reason")))
    for channel in CHANNELS:
        eventually(lambda: recorder.references(channel) == feed.due)  # noqa: B023
        assert recorder.texts(channel) == [f"order_rejected ETHUSDT {feed.due[0]}"]
        # Counted once the answer is there, which the recorder gives after it has recorded.
        eventually(lambda: notifier.metric(f'notifications_shortened_total{{channel="{channel}"}}') == 1)  # noqa: B023


@pytest.mark.parametrize("down", CHANNELS)
def test_a_channel_that_is_down_does_not_hold_up_the_other(
    down: str,
    start: Callable[..., Program],
    recorder: Recorder,
    another_recorder: Callable[[], Recorder],
    feed: Feed,
) -> None:
    other = another_recorder()
    other.stop()
    notifier = start(*(other.url if channel == down else recorder.url for channel in CHANNELS))
    up = next(channel for channel in CHANNELS if channel != down)
    for _ in range(3):
        feed.put(*burst(10))
        eventually(lambda: Counter(recorder.references(up)) == Counter(feed.due))
    eventually(lambda: notifier.metric(f'notifications_waiting{{channel="{down}"}}') == len(feed.due))
    other.launch().wait_for("/health")
    eventually(lambda: Counter(other.references(down)) == Counter(feed.due))
    notifier.wait_ready()


class _Refusing(threading.Thread):
    """A server that knows nobody: 401 to Telegram's token, 404 to the webhook."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                telegram = self.path.startswith("/bot")
                body = (
                    b'{"ok": false, "description": "Unauthorized"}' if telegram else b'{"message": "Unknown Webhook"}'
                )
                self.send_response(401 if telegram else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(daemon=True)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def run(self) -> None:
        self.server.serve_forever(0.05)


@pytest.fixture
def refusing() -> Iterator[str]:
    """The URL of a server that refuses every token."""
    server = _Refusing()
    server.start()
    yield server.url
    server.server.shutdown()
    server.server.server_close()
    server.join()


def test_a_wrong_token_shows_in_readiness_and_no_secret_in_the_log(
    start: Callable[..., Program], refusing: str, recorder: Recorder, feed: Feed
) -> None:
    notifier = start(refusing, refusing)
    feed.put(*burst(10))

    def both_told() -> dict[str, Any] | None:
        state = notifier.health()
        reason = state.get("reason", "")
        return state if "WEBHOOK" in reason and "TOKEN" in reason else None

    state = eventually(both_told)
    assert state is not None
    assert not state["ready"]
    assert state["alive"]
    assert "set MARKETFLOW_NOTIFIER_TELEGRAM_TOKEN" in state["channels"]["telegram"]
    assert "set MARKETFLOW_NOTIFIER_DISCORD_WEBHOOK_URL" in state["channels"]["discord"]
    # The remedy is a restart with the right ones: nothing was dropped meanwhile.
    notifier.stop()
    assert '"event": "channel_broken"' in notifier.log.read_text()
    mended = start(recorder.url, recorder.url)
    for channel in CHANNELS:
        eventually(lambda: Counter(recorder.references(channel)) == Counter(feed.due))  # noqa: B023
    mended.stop()
    for secret in (TOKEN, HOOK):
        assert secret not in notifier.log.read_text() + mended.log.read_text()


def test_only_the_events_that_are_asked_for_are_told(
    start: Callable[..., Program], recorder: Recorder, feed: Feed
) -> None:
    start(recorder.url, recorder.url, NOTIFIER_EVENTS="order_rejected")
    feed.put(*burst(10))
    wanted = [r for r in feed.due if r.startswith("order_events/")]
    eventually(lambda: Counter(recorder.references("telegram")) == Counter(wanted))
