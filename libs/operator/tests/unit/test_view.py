"""The view shows what the records, the metrics and the market say, at any width, without wrapping a row."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketflow_operator.audit.model import Evidence
from marketflow_operator.view.board import Board, Service, SymbolLine
from marketflow_operator.view.scrape import parse, quantile
from marketflow_operator.view.screen import draw, progress_line, spark
from rich.console import Console

Build = Callable[..., Evidence]
METRICS = """\
# HELP messages_in_total Records
# TYPE messages_in_total counter
messages_in_total{topic="a"} 3.0
messages_in_total{topic="b"} 4.0
# TYPE consumer_lag_records gauge
consumer_lag_records{partition="0",topic="a"} 5.0
consumer_lag_records{partition="1",topic="a"} 6.0
# TYPE agg_latency_seconds histogram
agg_latency_seconds_bucket{le="0.01"} 50.0
agg_latency_seconds_bucket{le="0.02"} 100.0
agg_latency_seconds_bucket{le="+Inf"} 100.0
agg_latency_seconds_count 100.0
agg_latency_seconds_sum 1.2
"""


def board_of(evidence: Evidence) -> Board:
    board = Board(due_trades=100)
    for seen in sorted((s for topic in evidence.records.values() for s in topic), key=lambda s: s.appended_ms):
        board.take(seen)
    board.take_messages([(message.channel, message.text) for message in evidence.recorded or ()])
    board.take_market(
        {
            "market_time_us": 1_723_161_540_000_000,
            "start_time_us": 1_723_161_300_000_000,
            "ended": False,
            "symbols": {"ETHUSDT": {"published": 25}},
        }
    )
    board.services = {
        "ingestor": Service("ingestor", up=True, ready=True, rate=650.4, total=12_345, lag=3, p50=1.234, p99=56.7),
        "loader": Service("loader", up=True, note="the warehouse is away " * 10),
        "executor": Service("executor", note="does not answer"),
    }
    return board


def drawn(board: Board, width: int, height: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False, legacy_windows=False)
    console.print(draw(board, width, height, "a replay with a rather long title " * 3))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_no_row_is_wider_than_the_terminal_and_nothing_wraps(world: Build, width: int) -> None:
    board = board_of(world(minutes=6))
    lines = drawn(board, width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40
    for name in ("ETHUSDT", "BTCUSDT", "ingestor", "loader", "executor"):
        assert sum(line.startswith(name) for line in lines) == 1
    assert any(line.startswith("loader") and "the warehouse" in line for line in lines)


def test_the_view_shows_price_candle_signal_position_and_pnl_of_each_symbol(world: Build) -> None:
    evidence = world(minutes=6)
    board = board_of(evidence)
    line = board.symbols["ETHUSDT"]
    trades = [s.event for s in evidence.records["ohlcv_raw"] if s.key == "ETHUSDT" and hasattr(s.event, "price")]
    fills = [s.event for s in evidence.records["order_events"] if s.key == "ETHUSDT" and hasattr(s.event, "fill_id")]
    assert line.price == trades[-1].price
    assert line.trades == len(trades)
    assert line.candles == 6
    assert line.position == fills[-1].position_qty
    assert line.realized == sum((fill.realized_pnl for fill in fills), Decimal(0))
    text = "\n".join(drawn(board, 140))
    for word in ("25%", "market time 2024-08-08 23:59:00", "ACTIVE", "BUY", "12,345", "650", "does not answer"):
        assert word in text


def test_with_more_symbols_than_rows_those_held_come_first_and_the_services_stay_in_sight(world: Build) -> None:
    board = board_of(world(minutes=6))
    board.symbols |= {f"T{number:03d}USDT": SymbolLine(f"T{number:03d}USDT") for number in range(998)}
    board.symbols["T997USDT"].position = Decimal(1)
    lines = drawn(board, 140)
    assert len(lines) <= 40
    shown = [line.split()[0] for line in lines if re.match(r"\w+USDT ", line)]
    assert f"… and {len(board.symbols) - len(shown):,} more symbols" in lines
    assert "T997USDT" in shown[:2]
    for name in ("ingestor", "loader", "executor", "latest"):
        assert any(line.startswith(name) for line in lines)
    assert max(map(len, drawn(board, 80, 10))) <= 80


def test_a_due_event_is_marked_once_each_channel_has_it(world: Build) -> None:
    evidence = world(minutes=2)
    board = board_of(evidence)
    assert any(" TD " in line for line in drawn(board, 140))
    board.told.clear()
    assert not any(" TD " in line for line in drawn(board, 140))


def test_a_hold_of_one_strategy_does_not_hide_the_buy_of_another(world: Build) -> None:
    board = board_of(world(minutes=2))
    signal = board.symbols["ETHUSDT"].signal
    assert signal is not None
    assert signal.signal_type == "BUY"


def test_progress_is_one_line_that_says_what_is_waited_for(world: Build) -> None:
    board = board_of(world())
    board.waiting = "the loader stands at 3 of 7"
    line = progress_line(board)
    assert "\n" not in line
    assert line.startswith("market 23:59:00 25%: ")
    assert line.endswith("; waiting: the loader stands at 3 of 7")


def test_an_empty_board_can_be_drawn() -> None:
    assert any("no trades yet" in line for line in drawn(Board(), 80))


def test_metrics_are_summed_over_labels_and_quantiles_read_from_buckets() -> None:
    samples = parse(METRICS)
    assert samples.values["messages_in_total"] == 7
    assert samples.values["consumer_lag_records"] == 11
    assert quantile(samples.buckets["agg_latency_seconds"], 0.5) == pytest.approx(0.01)
    assert quantile(samples.buckets["agg_latency_seconds"], 0.99) == pytest.approx(0.0198)
    assert quantile({}, 0.5) is None


@given(st.lists(st.decimals(1, 10_000, places=2), max_size=30))
def test_a_chart_has_one_bar_per_value_with_the_extremes_at_bottom_and_top(values: list[Decimal]) -> None:
    bars = spark(values)
    assert len(bars) == len(values)
    if len(set(values)) > 1:
        assert bars[values.index(max(values))] == "█"
        assert bars[values.index(min(values))] == "▁"
