"""A process that runs one of the loops with a small stateful core, and dies where it is told to.

Used by the tests beside it as ``python runner.py transform|sink ...``; prints nothing, exits like a service.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from marketflow_common import logs, topics
from marketflow_common.events import Candle, Event, Trade
from marketflow_common.health import Health
from marketflow_common.kafka import client
from marketflow_common.kafka.client import Committed, FatalKafkaError, Fenced, Record
from marketflow_common.kafka.sink import Batches, Limits, Retry, Sink, Slot
from marketflow_common.kafka.transform import Transform
from marketflow_common.service import EXIT_FENCED, EXIT_UNAVAILABLE
from marketflow_common.settings import KafkaSettings


class RunningTotal:
    """For each trade a candle that carries the running total: wrong at once if state and position disagree."""

    def __init__(self, out_end: int) -> None:
        self.total, self.last_id, self.out_from = Decimal(0), 0, out_end

    def restore_output(self, record: Record) -> None:
        self.total, self.last_id = record.event.volume, record.event.last_trade_id
        self.out_from = record.offset

    def restore_input(self, record: Record) -> None:
        raise AssertionError("this lane asks for no input before its position")

    def process(self, records: Iterable[Record]) -> list[Event]:
        outputs: list[Event] = []
        for record in records:
            if not isinstance(record.event, Trade) or record.event.trade_id <= self.last_id:
                continue
            self.total += record.event.qty
            self.last_id = record.event.trade_id
            zero = Decimal(0)
            one = record.event.price
            outputs.append(
                Candle(
                    record.event.symbol, "1m", self.last_id, self.last_id, one, one, one, one,
                    self.total, zero, 1, zero, zero, self.last_id, self.last_id,
                )
            )  # fmt: skip
        return outputs

    def position(self, next_offset: int) -> Committed:
        return Committed(next_offset, {"out_from": self.out_from})

    def delivered(self, outputs: Sequence[Event], offsets: Sequence[int]) -> None:
        if offsets:
            self.out_from = offsets[-1]


class Die:
    """SIGKILL itself at the n-th time that a step is reached."""

    def __init__(self, step: str, times: int) -> None:
        self._step, self._left = step, times

    def __call__(self, step: str) -> None:
        if step == self._step:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class MoveOn:
    """Tells the loop once that the group has moved on without it, at the first time that a step is reached."""

    def __init__(self, step: str) -> None:
        self._step = step

    def __call__(self, step: str) -> None:
        if step == self._step:
            self._step = ""
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))


def hang_once() -> None:
    """As librdkafka does at times: what sends a transaction's offsets waits for ever, whatever its time limit."""
    really, left = client.BoundedProducer._send_offsets, [1]

    def send(producer: client.BoundedProducer, *arguments: Any) -> None:
        if left:
            left.pop()
            threading.Event().wait()
        really(producer, *arguments)

    client.BoundedProducer._send_offsets = send  # type: ignore[method-assign]


class Lines:
    """Writes each record's coordinates and key as a line; takes its position from the file if told to."""

    def __init__(self, file: Path, from_file: bool, refuse: int, away: Path | None, die: Die) -> None:
        self._file, self._from_file, self._refuse, self._away, self._die = file, from_file, refuse, away, die
        file.touch()

    def opened(self, slot: Slot, committed: Committed) -> int | None:
        if not self._from_file:
            return None
        rows = [line.split() for line in self._file.read_text().splitlines()]
        offsets = [int(r[2]) for r in rows if (r[0], int(r[1])) == slot]
        return max(offsets) + 1 if offsets else 0

    def closed(self, slot: Slot) -> None:
        pass

    def write(self, batches: Batches) -> Mapping[Slot, Mapping[str, int]]:
        if self._refuse > 0 or (self._away is not None and self._away.exists()):
            self._refuse -= 1
            raise Retry("refused by the test", 0.2)
        self._die("before")
        with self._file.open("a") as out:
            for slot, messages in batches.items():
                out.writelines(f"{slot.topic} {slot.partition} {m.offset()}\n" for m in messages)
            out.flush()
            os.fsync(out.fileno())
        self._die("after")
        return {}


class Staged:
    """As Lines, in two parts: what is made ready ahead is written later by another thread."""

    def __init__(self, lines: Lines) -> None:
        self.opened, self.closed, self._lines = lines.opened, lines.closed, lines

    def prepare(self, batches: Batches) -> Callable[[], Mapping[Slot, Mapping[str, int]]]:
        return partial(self._lines.write, batches)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=["transform", "sink"])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--die-at", default="")
    parser.add_argument("--moved-on-at", default="")
    parser.add_argument("--hang", action="store_true", help="the first call that sends offsets never returns")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--from-file", action="store_true")
    parser.add_argument("--refuse", type=int, default=0)
    parser.add_argument("--staged", action="store_true", help="a sink whose effect is made ready ahead")
    parser.add_argument("--away-while", type=Path, help="refuse as long as this file is there")
    a = parser.parse_args()
    logs.configure(a.loop, "INFO", "text")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    kafka = KafkaSettings(bootstrap_servers=a.bootstrap, topic_prefix=a.prefix)
    die = Die(a.die_at, a.times)
    if a.hang:
        client.OVERDUE = 0.0  # type: ignore[misc]
        client.TIMEOUT = 2.0  # type: ignore[misc]
        hang_once()
    with Health(a.loop, port=a.port) as health:
        try:
            if a.loop == "transform":
                Transform(
                    kafka, "total", topics.OHLCV_RAW, topics.OHLCV_AGG, lambda _, end: RunningTotal(end), health,
                    batch=a.batch, step=MoveOn(a.moved_on_at) if a.moved_on_at else die,
                ).run(stop)  # fmt: skip
            else:
                lines = Lines(a.file, a.from_file, a.refuse, a.away_while, die)
                effect = Staged(lines) if a.staged else lines
                Sink(kafka, "lines", [topics.OHLCV_RAW, topics.OHLCV_AGG], effect, health, Limits(100, 10**6, 0.1)).run(
                    stop
                )
        except Fenced as error:
            print(error, file=sys.stderr)
            return EXIT_FENCED
        except FatalKafkaError as error:
            print(error, file=sys.stderr)
            return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
