"""All checks over one body of evidence, and what of them makes the audit hold.

Pure. A check whose evidence is missing is listed as not run; it never counts as holding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import delivery, market, trading
from .bands import signals_recomputed
from .cuts import cuts_of
from .model import Check, Evidence, Exchange, could_not_run, verdict

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """The outcome: all checks, in the order of the data's way through the system."""

    checks: Sequence[Check]

    @property
    def ok(self) -> bool:
        """Whether every check was run and holds."""
        return all(check.ok is True for check in self.checks)

    @property
    def failed(self) -> dict[str, Check]:
        """Checks that do not hold, by name."""
        return {check.name: check for check in self.checks if check.ok is False}

    @property
    def failed_beyond_waiting(self) -> list[Check]:
        """Failed checks other than that something had not come through yet."""
        return [check for name, check in self.failed.items() if name != "drained"]

    @property
    def not_run(self) -> list[Check]:
        """Checks that could not be judged."""
        return [check for check in self.checks if check.ok is None]


def judge(evidence: Evidence) -> Verdict:
    """Run every check. One that raises counts as not run, with what it said, and the others go on."""
    checks = [verdict("drained", 0, len(evidence.pending), evidence.pending)]
    if "topics" in evidence.missing:
        checks = [could_not_run("drained", evidence.missing["topics"])]
    exchange = evidence.exchange
    by_exchange = (*market.CHECKS, signals_recomputed, *trading.CHECKS)
    if exchange is None or "topics" in evidence.missing:
        reason = evidence.missing.get("topics") or evidence.missing.get("exchange", "no exchange")
        checks += [could_not_run(check.__name__, reason) for check in by_exchange]
    else:
        checks += _by_exchange(evidence, exchange, by_exchange)
    if evidence.warehouse is None or "topics" in evidence.missing:
        reason = evidence.missing.get("topics") or evidence.missing.get("warehouse", "no warehouse")
        checks += [could_not_run(check.__name__, reason) for check in delivery.WAREHOUSE_CHECKS]
    else:
        for rows in delivery.WAREHOUSE_CHECKS:
            checks += _run(rows.__name__, rows, evidence, evidence.warehouse)
    if evidence.recorded is None or "topics" in evidence.missing:
        reason = evidence.missing.get("topics") or evidence.missing.get("recorder", "no recorder")
        checks += [could_not_run(check.__name__, reason) for check in delivery.CHANNEL_CHECKS]
    else:
        for told in delivery.CHANNEL_CHECKS:
            checks += _run(told.__name__, told, evidence)
    return Verdict(tuple(checks))


def _by_exchange(evidence: Evidence, exchange: Exchange, checks: Sequence[Callable[..., Check]]) -> list[Check]:
    try:
        cuts = cuts_of(evidence)
    except Exception as error:  # noqa: BLE001  (as in _run)
        return [could_not_run(check.__name__, _failed(error)) for check in checks]
    return [found for check in checks for found in _run(check.__name__, check, evidence, exchange, cuts)]


def _run(name: str, check: Callable[..., Check | list[Check]], *given: object) -> list[Check]:
    try:
        found = check(*given)
    except Exception as error:  # noqa: BLE001  (a record that no check was made for must not end the audit)
        return [could_not_run(name, _failed(error))]
    return found if isinstance(found, list) else [found]


def _failed(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"the check itself failed: {type(error).__name__}{first and ': '}{first}"
