"""Retries: a used id gets its first answer again, at the prices of its own catalogue version.

The hold that `reserve.lua` found says which order it was (fingerprint) and when and at which version it was taken. Only
a retry across a change of the catalogue has to wait for that version; every other is answered at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from flashsale.errors import Refused
from flashsale.front.catalogues import Catalogues
from flashsale.front.verdicts import Answers
from flashsale.reservation.holds import Hold, unpack
from flashsale.sale.priced import Order, PricedSale

log = structlog.get_logger(__name__)

Deliver = Callable[[Order, bytes], None]


class Replays:
    """Answers replays. `answers` writes them, `catalogues` knows the older versions."""

    def __init__(self, answers: Answers, catalogues: Catalogues) -> None:
        self._answers, self._catalogues = answers, catalogues
        self._priced: dict[tuple[str, int], PricedSale] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, order: Order, value: bytes, deliver: Deliver) -> None:
        """The first answer again, or `idempotency-mismatch` where the key was used for another order."""
        hold = unpack(value)
        if hold.fingerprint != order.head[1:9]:
            deliver(order, self._answers.problem(Refused("idempotency-mismatch", id=order.id)))
        elif hold.version == order.sale.version and order.sale.holds_at(hold.entry_ms):
            deliver(order, self._answers.replayed(order, hold))
        else:
            task = asyncio.get_running_loop().create_task(self._price_and_answer(order, hold, deliver))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _price_and_answer(self, order: Order, hold: Hold, deliver: Deliver) -> None:
        try:
            sale = await self._sale_at(order.sale, hold.version, hold.entry_ms)
            sale.price(order)
            answer = self._answers.replayed(order, hold)
        except Exception as error:
            log.warning("a replay can't be priced", order=order.id, version=hold.version, error=repr(error))
            answer = self._answers.problem(Refused("outcome-unknown", id=order.id))
        deliver(order, answer)

    async def _sale_at(self, sale: PricedSale, version: int, at_ms: int) -> PricedSale:
        """The sale as it was priced then."""
        if version == sale.version:
            return sale.at(at_ms)
        known = self._priced.get((sale.id, version))
        if known is None:
            catalogue = await self._catalogues.version(version)
            found = catalogue.sale(sale.id) if catalogue is not None else None
            if found is None:
                raise LookupError(f"catalogue version {version} is not kept")
            assert catalogue is not None  # noqa: S101  it has the sale
            known = PricedSale(found, version, sale.partition, catalogue.world, at_ms)
            if len(self._priced) >= 16:  # as many older versions as Catalogues keeps
                self._priced.clear()
            self._priced[sale.id, version] = known
        return known.at(at_ms)
