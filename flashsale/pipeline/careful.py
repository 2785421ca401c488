"""Facts of a payment provider applied so that one which can't be stored never stops the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import structlog

from flashsale.ledger import life
from flashsale.ledger.life import Applied
from flashsale.ledger.pool import REFUSED, Connection
from flashsale.pipeline.duty import LOST
from flashsale.sale.payment import Fact

log = structlog.get_logger(__name__)


class Unfit(NamedTuple):
    """A fact that was not applied: its place among those given, and why."""

    place: int
    error: str


async def apply_carefully(connection: Connection, facts: Sequence[Fact], now_ms: int) -> tuple[Applied, list[Unfit]]:
    """Applies what can be applied, in a transaction of the caller's; narrows down what can't to the single fact.

    Raises what is raised where a server is lost.
    """
    unfit: list[Unfit] = []
    applied = await _apply(connection, facts, 0, now_ms, unfit)
    return applied, unfit


async def _apply(connection: Connection, facts: Sequence[Fact], first: int, now_ms: int, unfit: list[Unfit]) -> Applied:
    if not facts:
        return Applied()
    try:
        async with connection.transaction():  # a savepoint
            return await life.apply_facts(connection, facts, now_ms)
    except Exception as fault:
        if isinstance(fault, LOST) and not isinstance(fault, REFUSED):
            raise
        if len(facts) == 1:
            unfit.append(Unfit(first, f"{type(fault).__name__}: {fault}"))
            return Applied()
        if first == 0:
            log.warning(
                "facts of the payment provider are applied piece by piece", facts=len(facts), reason=repr(fault)
            )
    middle = len(facts) // 2
    one = await _apply(connection, facts[:middle], first, now_ms, unfit)
    two = await _apply(connection, facts[middle:], first + middle, now_ms, unfit)
    return Applied(*(getattr(one, name) + getattr(two, name) for name in Applied.__slots__))
