"""Commands: what each does to the trading state, and which are not honoured."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from executor_builders import OPENED, instrument, intended, limits, view
from hypothesis import given
from hypothesis import strategies as st
from marketflow_common.commands import signed
from marketflow_common.events import (
    Command,
    OrderIntended,
    Side,
    SignalSkipped,
    TradingState,
    TradingStateChanged,
)
from marketflow_executor.account import Account
from marketflow_executor.books import Position
from marketflow_executor.commands import flatten_id, flatten_signal, is_flatten, judge, withheld
from marketflow_executor.decision import sell_all
from marketflow_executor.filters import Instrument
from marketflow_executor.risk import RECONCILER

SECRET = "shared"
NOW = 1_000_000_000_000
LIMITS = limits(max_signal_age_ms=120_000)
ETH = instrument()


def command(action: Any, **changes: Any) -> Command:
    return msgspec.structs.replace(Command("c-1", "main", action, "alice", NOW - 1_000, None, ""), **changes)


def after(
    what: Command, state: TradingState = "ACTIVE", state_at: int = 0, now: int = NOW, secret: str = SECRET, **how: bool
) -> TradingState | str:
    judged = judge(what, state, state_at, now, secret, trusting=how.get("trusting", True))
    return judged.state if isinstance(judged, TradingStateChanged) else judged


@pytest.mark.parametrize("state", ["ACTIVE", "REDUCE_ONLY", "HALTED"])
def test_signed_commands_set_the_state_and_a_flatten_loosens_none(state: TradingState) -> None:
    results = {a: after(signed(command(a), SECRET), state) for a in ("halt", "reduce_only", "resume", "flatten")}
    assert results == {
        "halt": "HALTED",
        "reduce_only": "REDUCE_ONLY",
        "resume": "ACTIVE",
        "flatten": "HALTED" if state == "HALTED" else "REDUCE_ONLY",
    }


def test_the_change_says_who_and_why_and_names_its_command() -> None:
    changed = judge(command("halt", asked_by=RECONCILER, reason="news"), "ACTIVE", 0, NOW, "", trusting=False)
    assert isinstance(changed, TradingStateChanged)
    assert (changed.command_id, changed.action, changed.changed_at) == ("c-1", "halt", NOW)
    assert changed.reason == "halt by command: news"
    # Otherwise the reconciliation would take back what somebody of that name has halted.
    assert changed.changed_by == "operator:reconciliation"


@given(st.text(max_size=64), st.integers(0, 2 * NOW), st.one_of(st.none(), st.integers(0, 2 * NOW)))
def test_a_halt_is_always_honoured(signature: str, issued_at: int, expires_at: int | None) -> None:
    halt = command("halt", signature=signature, issued_at=issued_at, expires_at=expires_at)
    assert after(halt, "ACTIVE", NOW, trusting=False) == "HALTED"


@pytest.mark.parametrize("signature", ["", "0" * 64])
def test_what_loosens_or_sells_needs_the_secret_where_there_is_one(signature: str) -> None:
    said = "not signed" if not signature else "signature"
    assert said in after(command("resume", signature=signature), "HALTED")
    assert said in after(command("flatten", signature=signature))
    assert said in after(command("reduce_only", signature=signature), "HALTED")
    assert after(command("reduce_only", signature=signature)) == "REDUCE_ONLY"


def test_a_signature_of_another_secret_or_of_another_command_is_refused() -> None:
    assert "signature" in after(signed(command("resume"), "other"), "HALTED")
    forged = msgspec.structs.replace(signed(command("halt"), SECRET), action="resume")
    assert "signature" in after(forged, "HALTED")


def test_without_a_secret_commands_are_trusted_but_never_with_real_money() -> None:
    assert after(command("resume"), "HALTED", secret="") == "ACTIVE"
    assert "COMMAND_SECRET" in after(command("resume"), "HALTED", secret="", trusting=False)
    assert "COMMAND_SECRET" in after(command("flatten"), secret="", trusting=False)


def test_a_resume_from_before_the_halt_is_stale() -> None:
    resume = signed(command("resume", issued_at=NOW - 10), SECRET)
    assert "stale" in after(resume, "HALTED", state_at=NOW - 9)
    assert after(resume, "HALTED", state_at=NOW - 10) == "ACTIVE"


def test_commands_expire_by_their_own_word_or_after_five_minutes_and_may_not_come_from_the_future() -> None:
    resume = signed(command("resume", issued_at=NOW, expires_at=NOW + 5), SECRET)
    assert after(resume, "HALTED", now=NOW + 5) == "ACTIVE"
    assert "expired" in after(resume, "HALTED", now=NOW + 6)
    flatten = signed(command("flatten", issued_at=NOW), SECRET)
    assert "expired" in after(flatten, now=NOW + 300_000_001)
    assert "ahead" in after(signed(command("resume", issued_at=NOW + 60_000_001), SECRET), "HALTED")


# --- orders under a command --------------------------------------------------------------------------


def intent(signal_id: str, side: Side = "BUY") -> OrderIntended:
    return intended(signal_id, side=side, signal_close=Decimal(2_300), signal_last_trade_id=7)


def test_an_intent_that_a_command_overtakes_is_not_sent() -> None:
    buy, sell = intent("s"), intent("s", "SELL")
    assert not withheld(buy, "ACTIVE")
    assert "REDUCE_ONLY" in withheld(buy, "REDUCE_ONLY")
    assert not withheld(sell, "REDUCE_ONLY")
    assert "HALTED" in withheld(sell, "HALTED")
    assert not withheld(intent(flatten_id("c-1", "ETHUSDT"), "SELL"), "HALTED")


def flattened() -> TradingStateChanged:
    changed = judge(command("flatten"), "ACTIVE", 0, NOW, "", trusting=True)
    assert isinstance(changed, TradingStateChanged)
    return changed


def test_a_flatten_sells_all_that_is_held_whatever_state_and_size_say() -> None:
    order = flatten_signal(flattened(), "ETHUSDT", Decimal(2_300), 7)
    cost = Decimal(3_000)
    seen = view(position=Position(Decimal("1.50001"), cost), exposure=cost, free=Decimal(0), state="HALTED")
    decided = sell_all(order, 1, seen, ETH, LIMITS, NOW // 1_000)
    assert isinstance(decided, OrderIntended)
    assert is_flatten(decided.signal_id)
    assert (decided.side, decided.order_type, decided.qty) == ("SELL", "MARKET", Decimal("1.5"))
    assert decided.signal_last_trade_id == 7


def test_a_flatten_says_why_it_leaves_something() -> None:
    order = flatten_signal(flattened(), "ETHUSDT", Decimal(2_300), 7)

    def reason(qty: str, attempt: int = 1, rules: Instrument | None = ETH) -> str:
        position = Position(Decimal(qty), Decimal(1))
        seen = view(position=position, exposure=Decimal(1), free=Decimal(0), state="REDUCE_ONLY")
        decided = sell_all(order, attempt, seen, rules, LIMITS, NOW // 1_000)
        assert isinstance(decided, SignalSkipped)
        return decided.reason

    assert reason("0.001") == "below_min_notional"
    assert reason("1", attempt=4) == "attempts_exhausted"
    assert reason("1", rules=None) == "unknown_symbol"


def test_the_log_tells_which_commands_were_honoured_and_how_far_a_flatten_has_come() -> None:
    account = Account("main", {"ETHUSDT": ETH.assets})
    account.apply(OPENED)
    order, number = flattened(), flatten_id("c-1", "ETHUSDT")
    account.apply(order)
    assert "c-1" in account.commands
    assert account.flatten == order
    assert account.next_flatten(number) == 1
    account.apply(intent(number, "SELL"))
    assert account.next_flatten(number) == 2
    assert account.seen["ETHUSDT"] == (Decimal(2_300), 7)
    account.apply(SignalSkipped("main", number, "ETHUSDT", "SELL", "attempts_exhausted", ""))
    assert account.next_flatten(number) is None
    # A limit's change does not end it, another command does.
    account.apply(TradingStateChanged("main", "HALTED", "deep", "risk:drawdown", 2))
    assert account.flatten == order
    account.apply(TradingStateChanged("main", "ACTIVE", "", "operator:alice", 3, "c-2", "resume"))
    assert account.flatten is None
