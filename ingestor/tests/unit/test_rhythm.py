"""Silence is remarkable by a connection's own past, not by a fixed timeout."""

from __future__ import annotations

from marketflow_ingestor.rhythm import Rhythm

TICK = 0.25


def listen(rhythm: Rhythm, seconds: float, every: float) -> bool:
    """Messages come ``every`` so many seconds; returns whether any silence was remarkable."""
    remarkable, waited, passed = False, 0.0, 0.0
    while passed < seconds:
        passed, waited = passed + TICK, waited + TICK
        heard = waited >= every
        remarkable = rhythm.tick(TICK, heard) or remarkable
        waited = 0.0 if heard else waited
    return remarkable


def silent_until_remarkable(rhythm: Rhythm) -> float:
    seconds = 0.0
    while not rhythm.tick(TICK, False):
        seconds += TICK
    return seconds


def test_a_busy_connection_is_suspected_within_seconds() -> None:
    rhythm = Rhythm(3.0, 75.0)
    assert not listen(rhythm, 30, TICK)
    assert silent_until_remarkable(rhythm) <= 3.25


def test_a_slow_connection_gets_the_time_that_it_usually_takes() -> None:
    rhythm = Rhythm(3.0, 75.0)
    assert not listen(rhythm, 120, 10.0)
    assert 38 <= silent_until_remarkable(rhythm) <= 42


def test_a_connection_of_closed_klines_only_is_suspected_when_one_is_overdue() -> None:
    rhythm = Rhythm(3.0, 75.0)
    assert not listen(rhythm, 600, 60.0)
    assert 74 <= silent_until_remarkable(rhythm) <= 76


def test_nothing_is_remarkable_before_a_rhythm_is_known_but_the_ceiling() -> None:
    rhythm = Rhythm(3.0, 75.0)
    assert not listen(rhythm, 1.5, TICK)
    assert silent_until_remarkable(rhythm) >= 70


def test_a_successor_begins_with_what_was_learned() -> None:
    rhythm = Rhythm(3.0, 75.0)
    listen(rhythm, 30, TICK)
    assert silent_until_remarkable(Rhythm(3.0, 75.0, like=rhythm)) <= 3.25


def test_a_silence_that_was_the_markets_own_raises_the_limit() -> None:
    rhythm = Rhythm(3.0, 75.0)
    listen(rhythm, 30, TICK)
    silent_until_remarkable(rhythm)
    rhythm.legitimate()
    assert silent_until_remarkable(rhythm) > 11


def test_the_time_that_this_process_slept_is_not_silence() -> None:
    rhythm = Rhythm(3.0, 75.0)
    listen(rhythm, 30, TICK)
    assert not rhythm.tick(60.0, False)
