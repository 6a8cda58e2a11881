"""The journal gives back whole steps only, and also those that were written before orders knew as much as today."""

from pathlib import Path

import msgspec
from marketflow_simulator.amounts import scaled
from marketflow_simulator.books import Books
from marketflow_simulator.journal import Identity, Journal
from marketflow_simulator.records import Change, Order
from marketflow_simulator.symbols import spec_of

SPEC = spec_of("ETHUSDT")
IDENTITY = Identity(["ETHUSDT"], 7, None, 0, {"USDT": scaled("100")}, 0)


def change(number: int) -> Change:
    order = Order(number, f"n{number}", "ETHUSDT", "BUY", "LIMIT", "GTC", scaled("10"), scaled("1"), 0, "NEW", 5, 5, 0)
    return Change(order, None, {"USDT": 0}, {"USDT": scaled("10")}, number)


def read(folder: Path) -> list[Change]:
    journal = Journal(folder, IDENTITY)
    _, changes = journal.open()
    journal.close()
    return changes


def test_a_step_of_several_changes_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    journal.open()
    journal.set_clock(False, 0, 0, 0.0)
    journal.record([change(1)])
    journal.record([change(2), change(3)])
    journal.close()
    path = tmp_path / "books.jsonl"
    assert len(path.read_bytes().splitlines()) == 2
    changes = read(tmp_path)
    assert changes == [change(1), change(2), change(3)]
    path.write_bytes(path.read_bytes()[:-20])
    changes = read(tmp_path)
    assert changes == [change(1)]


def test_steps_of_an_older_simulator_are_understood(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    journal.open()
    journal.set_clock(False, 0, 0, 0.0)
    journal.close()
    old = msgspec.to_builtins(change(1))
    newer = ("stop_price", "working", "working_ms", "list_id", "locked", "taking", "after_id", "parts", "expire_rest")
    newer += ("strategy_id", "strategy_type", "stp", "expiry_reason")
    old["order"] = {name: value for name, value in old["order"].items() if name not in newer}
    line = {name: old[name] for name in ("order", "fill", "free", "locked", "market_us")}
    (tmp_path / "books.jsonl").write_bytes(msgspec.json.encode(line) + b"\n")
    changes = read(tmp_path)
    books = Books([SPEC], IDENTITY.initial, 0, lambda: 9, lambda: 9)
    books.restore(changes)
    (order,) = books.open_orders()
    assert (order.working_ms, order.locked) == (5, scaled("10"))
    books.cancel("ETHUSDT", 1, None)
    assert (books.free["USDT"], books.locked["USDT"]) == (scaled("10"), 0)
