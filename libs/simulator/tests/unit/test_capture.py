"""Recordings are read whole or refused with file, line and what was expected."""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from marketflow_simulator import capture as capture_module
from marketflow_simulator.amounts import SCALE
from marketflow_simulator.capture import CaptureError, load

Line = Callable[..., str]


def test_a_capture_gives_its_trades_and_counts_what_else_it_holds(tmp_path: Path, line: Line) -> None:
    path = tmp_path / "some.jsonl"
    kline = '1723161254340863867 {"stream":"ethusdt@kline_1m","data":{"e":"kline"}}\n'
    path.write_text(line(5, 1_000_000) + kline + line(6, 1_000_050, maker=False) + kline)
    recording = load(path)
    (tape,) = recording.tapes
    assert [(t.id, t.time_us, t.buyer_is_maker) for t in tape.by_id(0, 9)] == [
        (5, 1_000_000_000, True),
        (6, 1_000_050_000, False),
    ]
    assert recording.ignored == {"kline_1m": 2}
    assert recording.specs[0].tick == SCALE // 100


def test_a_gzipped_capture_is_the_same(tmp_path: Path, capture: Path) -> None:
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(capture.read_bytes()))
    assert load(packed).tapes[0].by_id(0, 2000) == load(capture).tapes[0].by_id(0, 2000)


def test_repeated_and_disordered_lines_become_each_id_once_in_order(tmp_path: Path, line: Line) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(line(3, 3000) + line(1, 1000) + line(2, 2000) + line(3, 3000) + line(9, 2500))
    recording = load(path)
    trades = recording.tapes[0].by_id(0, 9)
    assert [t.id for t in trades] == [1, 2, 3, 9]
    assert [t.time_us for t in trades] == [1_000_000, 2_000_000, 3_000_000, 2_500_000]
    assert [t.at_us for t in trades] == [1_000_000, 2_000_000, 3_000_000, 3_000_000]
    assert recording.repeated == 1


def test_trades_of_one_taker_at_one_price_are_one_aggregate(tmp_path: Path, line: Line) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(line(1, 1000) + line(2, 1000) + line(3, 1000, price="2683.81") + line(5, 1000, price="2683.81"))
    assert [t.agg_id for t in load(path).tapes[0].by_id(0, 9)] == [1, 1, 2, 3]


def test_a_large_recording_is_read_the_same_from_disk(monkeypatch: pytest.MonkeyPatch, capture: Path) -> None:
    expected = load(capture).tapes[0]
    monkeypatch.setattr(capture_module, "IN_MEMORY", 100)
    tape = load(capture).tapes[0]
    assert tape.by_id(0, 5000) == expected.by_id(0, 5000)
    assert tape.between(0, 1 << 60) == expected.between(0, 1 << 60)
    assert list(tape.live(0)) == expected.by_id(0, 5000)
    assert tape.last_at_us == expected.last_at_us


@pytest.mark.parametrize("unit", [1, 1000])
@pytest.mark.parametrize("packed", [True, False])
def test_a_trade_dump_is_read_in_milliseconds_and_microseconds(tmp_path: Path, unit: int, packed: bool) -> None:
    rows = (
        f"101,2683.80,0.5,1341.9,{1_723_161_255_611 * unit},True,True\n"
        f"102,2683.90,0.25,670.975,{1_723_161_255_700 * unit},false,true\n"
    )
    text = ("id,price,qty,quote_qty,time,is_buyer_maker,is_best_match\n" if unit == 1 else "") + rows
    path = tmp_path / ("ETHUSDT-trades-2024-08-08" + (".zip" if packed else ".csv"))
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ETHUSDT-trades-2024-08-08.csv", text)
    else:
        path.write_text(text)
    (tape,) = load(path).tapes
    assert tape.symbol == "ETHUSDT"
    assert [(t.id, t.time_us, t.buyer_is_maker) for t in tape.by_id(0, 9)] == [
        (101, 1_723_161_255_611_000, True),
        (102, 1_723_161_255_700_000, False),
    ]


def test_only_the_symbols_asked_for_are_taken(capture: Path) -> None:
    assert [tape.symbol for tape in load(capture, ["ETHUSDT", "BTCUSDT"]).tapes] == ["ETHUSDT"]
    with pytest.raises(CaptureError, match=r"holds no trades of .'BTCUSDT'."):
        load(capture, ["BTCUSDT"])


def test_a_malformed_line_is_named_with_what_was_expected(tmp_path: Path, line: Line) -> None:
    path = tmp_path / "some.jsonl"
    for bad in (
        "not a capture\n",
        "17 {\n",
        '17 {"stream":"ethusdt@trade","data":{"s":"ETHUSDT"}}\n',
        line(7, 1000, price="1e3"),
        line(7, 1000, qty="0"),
        line(7, 1000).replace("ETHUSDT", "ETHXYZ"),
    ):
        path.write_text(line(5, 1000) + line(6, 1000) + bad)
        with pytest.raises(CaptureError, match=rf"{path} line 3: .*; expected <receive time ns>"):
            load(path)


def test_broken_files_are_refused_in_one_line(tmp_path: Path, capture: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(capture.read_bytes())[:-200])
    dump = tmp_path / "ETHUSDT-trades-2024-08-08.zip"
    dump.write_bytes(b"PK no zip")
    row = tmp_path / "ETHUSDT-trades-2024-08-09.csv"
    row.write_text("1,2,3\n")
    named = tmp_path / "trades.csv"
    named.write_text("")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for path, message in (
        (cut, "broken gzip"),
        (dump, "broken zip"),
        (row, "line 1: it has 3 columns; expected id,price"),
        (named, "expected <SYMBOL>-trades-<date>.csv"),
        (empty, "holds no trades"),
        (tmp_path / "none.jsonl", "cannot read .*: No such file"),
    ):
        with pytest.raises(CaptureError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
