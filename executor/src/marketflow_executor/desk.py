"""What the parts of a term of leadership share: its open orders, and the hands that commit, send and learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, TypeVar

from marketflow_common.events import OrderEvent, OrderIntended, Signal, SignalSkipped

from .account import Account
from .decision import Limits
from .exchange import Exchange
from .orders import Answer, Evidence, Verdict

__all__ = ["Broken", "Desk", "Pending", "TermOver"]

T = TypeVar("T")


class TermOver(Exception):
    """Another instance leads now, or this one is stopping."""


class Broken(Exception):
    """A transaction's end is not known: everything is put back to what is in the log."""


@dataclass
class Pending:
    """What is being done about an order that has not ended."""

    signal: Signal | None = None
    due: float = 0.0
    asked: int = 0
    resend: bool = False
    lost: str = ""
    """Why it provably never arrived; what is left to do is to close it and to decide again."""
    evidence: Evidence | None = None
    """What was heard of it and is not in the log yet."""
    known: bool = False
    """Whether the exchange has said that it has it."""
    cancel_at: float = 0.0
    """Before this, its cancellation is not asked for (again): an answer is on its way, or the order is."""
    chase_at: float = 0.0
    """Before this, the market's price is not looked at for it."""


class Desk(Protocol):
    """The engine, as far as its parts need it."""

    account: Account
    pending: dict[str, Pending]
    margin_ms: int
    """How late after its deadline the exchange may still come to know an order."""

    @property
    def limits(self) -> Limits:
        """What the account may do."""

    @property
    def exchange(self) -> Exchange:
        """Where orders go."""

    def seen(self, symbol: str) -> tuple[Decimal, int] | None:
        """Close and last trade id of the newest signal of a symbol in this term."""

    def step(self, name: str) -> None:
        """Say which step has been reached."""

    def commit(self, events: Sequence[OrderEvent]) -> None:
        """Publish events, all or nothing; the fold follows."""

    def learn(self, intent: OrderIntended, answer: Answer) -> Verdict:
        """Take in an answer about an open order. Returns what it comes to."""

    def launch(self, *intents: OrderIntended) -> None:
        """Commit an order, or the legs of a list, that follow from no signal; then send."""

    def publish_decided(
        self, signal: Signal, decided: OrderIntended | SignalSkipped, before: Sequence[OrderEvent]
    ) -> None:
        """Commit a decision together with ``before``; then send what was decided."""

    def ask(self) -> None:
        """Ask the exchange for what is due, once; decides nothing."""

    def tend(self) -> None:
        """Heed commands and ask for what is due, once; raises TermOver when it is time to leave."""

    def find_signal(self, intent: OrderIntended) -> Signal | None:
        """The signal of an intent, from the log."""

    def until_available(self, question: Callable[[], T]) -> T:
        """The exchange's answer, however long that takes."""
