"""What carriers are asked: to carry the parcels of paid orders, to leave those that were cancelled, and what is new.

Parcels are made of the ledger's history, claimed in sets and asked about with bounded concurrency. A call whose outcome
is unknown is made again, for a reference books one parcel; one that was under way when its worker died is due again as
soon as the next worker takes the duty up. A carrier that is away delays parcels, and loses none.

Orders of marketplaces get no parcel here: the channel packs and labels them itself (`ledger/fulfilment.py`). So does
any channel with the order that it packs before its parcel was made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import asyncpg
import orjson
import structlog

from flashsale import metrics
from flashsale.errors import Refused
from flashsale.ledger import followers, parcels, sales, tracking
from flashsale.ledger.parcels import DueParcel, ParcelRow
from flashsale.ledger.pool import Connection, LedgerAway
from flashsale.partners.carriers.carrier import (
    PICKED_UP,
    UNKNOWN,
    CarrierAway,
    CarrierRefused,
    Carriers,
    Goods,
    Parcel,
    ParcelState,
)
from flashsale.pipeline.care import reason_of
from flashsale.pipeline.catalogues import Catalogues
from flashsale.pipeline.duty import Duty, is_away
from flashsale.sale.catalogue import Catalogue
from flashsale.sale.tracking import ParcelStatus

log = structlog.get_logger(__name__)

POLL_S = 0.3  # pause between two looks for orders that were paid and parcels that are due
HISTORY_ROWS = 2000  # changes looked through in one transaction
AGAIN_MS = (1_000, 300_000)  # first and longest pause before a call without an answer is made again
BRAKE_S = (0.2, 10.0)  # and before anything more is asked of carriers that answered none of a set
SILENT_DOUBLED = 5  # times: a parcel that stays silent is asked about less and less
VERSIONS_KEPT = 4  # catalogues, decoded, that parcels are described by


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Answer:
    """What became of one parcel's call. `away`: why nothing is known; `refused`: the carrier's no."""

    due: DueParcel
    waybill: str | None = None  # one that was not known before
    cancelled: bool = False
    state: ParcelState | None = None
    refused: CarrierRefused | None = None
    away: str | None = None


class CarrierCalls(Duty):
    """Asks carriers for what is due. They are their caller's to close. `silent_s`: a parcel that nothing was heard of
    for so long is asked about."""

    name = "carrier calls"
    lock = 0x666C6364

    def __init__(
        self,
        database_url: str,
        carriers: Carriers,
        *,
        silent_s: float,
        concurrency: int = 16,
        timeout_s: float = 10,
        again_ms: tuple[int, int] = AGAIN_MS,
    ) -> None:
        """`timeout_s`: the carriers', of one request."""
        super().__init__(database_url)
        self._carriers = carriers
        self._silent_ms = round(silent_s * 1000)
        self._concurrency = concurrency
        self._lease_ms = round(timeout_s * 1000) * 4  # a call is two requests at most
        self._again_ms = again_ms
        self._catalogues = Catalogues()
        self._versions: dict[int, Catalogue] = {}
        self._brake_s = 0.0
        self._ask_after = 0.0  # by the monotonic clock: the brake's end

    async def work(self, connection: Connection) -> None:
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await followers.mend(connection, self.beat)
        await parcels.unlease(connection, now_ms())
        while not self.stopping.is_set():
            if lost.is_set():
                raise LedgerAway("PostgreSQL closed the connection")
            self.beat()
            more = await self._take_up(connection)
            if time.monotonic() >= self._ask_after:
                more = await self._ask_some(connection) or more
            if not more:
                await self.pause(POLL_S)

    async def _take_up(self, connection: Connection) -> bool:
        try:
            world = (await self._catalogues.present(connection)).world
        except LookupError:  # no sale yet
            return False
        lanes = {lane.number: lane.carrier for lane in world.lanes.lanes}
        elsewhere = [channel.id for channel in world.channels if channel.kind == "marketplace"]
        return await parcels.take_up(connection, lanes, elsewhere, rows=HISTORY_ROWS, now_ms=now_ms())

    async def _ask_some(self, connection: Connection) -> bool:
        """Makes the calls that are due, so many at once; whether there were any."""
        due = await parcels.claim_due(connection, now_ms(), self._concurrency, self._lease_ms)
        if not due:
            return False
        wanted = [await self._described_carefully(connection, each) for each in due]
        calls = {asyncio.create_task(self._ask(each, parcel)) for each, parcel in zip(due, wanted, strict=True)}
        answers = await self._all_or_stop(calls)
        try:
            async with connection.transaction():
                for answer in answers:
                    if answer.state is None:
                        await self._store(connection, answer)
        except Exception as fault:
            if is_away(fault):
                raise
            for answer in answers:
                if answer.state is None:
                    await self._carefully(connection, answer, partial(self._store, connection, answer))
        for answer in answers:  # each by itself: these lock orders, too
            if answer.state is not None:
                looked = partial(self._looked, connection, answer.due.row, answer.state)
                await self._carefully(connection, answer, looked)
        self._brake(any(answer.away is None for answer in answers))
        return True

    async def _carefully(self, connection: Connection, answer: Answer, store: Callable[[], Awaitable[None]]) -> None:
        """Stores what became of one call. Where that can't be, it is asked again later and says why; the others go
        on."""
        row = answer.due.row
        try:
            async with connection.transaction():
                await store()
        except Exception as fault:
            if is_away(fault):
                raise
            log.error("what became of a parcel's call can't be stored", order=row.order_id, exc_info=fault)
            await parcels.ask_again(connection, row, now_ms() + self._pause_ms(row), reason_of(fault))

    async def _all_or_stop(self, calls: set[asyncio.Task[Answer]]) -> list[Answer]:
        """The answers of the calls; those that came so far when it is time to stop."""
        stopping = asyncio.create_task(self.stopping.wait())
        pending = set(calls)
        try:
            while pending and not self.stopping.is_set():
                _, left = await asyncio.wait({*pending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                pending &= left
            return [call.result() for call in calls - pending]
        finally:
            stopping.cancel()
            for call in pending:
                call.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    # --- one call ---

    async def _ask(self, due: DueParcel, parcel: Parcel | None) -> Answer:
        """One parcel's call. Raises nothing but a cancellation."""
        row, answer = due.row, Answer(due)
        name = {ParcelStatus.TO_BOOK: "book", ParcelStatus.CANCELLING: "cancel"}.get(ParcelStatus(row.status), "look")
        outcome = "answered"
        try:
            waybill = row.waybill
            if waybill is None:  # also of one that was called off while it was booked: it is booked again to be known
                if parcel is None:
                    raise CarrierAway("the order does not say what is to be carried: the worker's log tells why")
                waybill = answer.waybill = await self._carriers.book(parcel)
            if name == "cancel":
                await self._carriers.cancel(waybill)
                answer.cancelled = True
            elif name == "look":
                answer.state = await self._carriers.look(waybill)
        except CarrierAway as away:
            outcome, answer.away = "away", str(away)
            log.info(
                "a carrier is asked again later", order=row.order_id, carrier=row.carrier, call=name, why=str(away)
            )
        except CarrierRefused as refused:
            outcome, answer.refused = "refused", refused
        except Exception as fault:  # a fault of ours: it must not end the other calls
            outcome, answer.away = "away", f"{type(fault).__name__}"
            log.exception("a call to a carrier failed", order=row.order_id, carrier=row.carrier, call=name)
        metrics.CARRIER_CALLS.labels(name, outcome).inc()
        return answer

    async def _described_carefully(self, connection: Connection, due: DueParcel) -> Parcel | None:
        """The same; None, too, where the order or its catalogue can't be read."""
        try:
            return await self._described(connection, due)
        except Exception as fault:
            if is_away(fault):
                raise
            log.error("a parcel can't be described", order=due.row.order_id, exc_info=fault)
            return None

    async def _described(self, connection: Connection, due: DueParcel) -> Parcel | None:
        """The parcel as it is booked; None where nothing is to be booked, or the order's catalogue is missing. The
        order's own version of the catalogue says what lies in it, so that it says the same each time."""
        row = due.row
        if row.waybill is not None:
            return None
        catalogue = await self._version(connection, due.catalogue_version)
        sale = None if catalogue is None else catalogue.by_number(due.sale)
        if sale is None:
            return None
        lines = [(sale.offers[sku], units) for sku, units in zip(row.skus, row.quantities, strict=True) if units]
        return Parcel(
            reference=row.order_id,
            carrier=row.carrier,
            lane=due.lane or "",
            ships_from=sale.ships_from,
            country=due.market,
            to={} if due.ship_to is None else orjson.loads(due.ship_to),
            weight_g=sum(offer.weight_g * units for offer, units in lines),
            currency=due.currency,
            goods=[
                Goods(offer.sku, offer.title_in("en"), units, due.prices[offer.index], offer.hs_code, offer.origin)
                for offer, units in lines
            ],
        )

    async def _version(self, connection: Connection, version: int) -> Catalogue | None:
        if version not in self._versions:
            document = await sales.catalogue(connection, version)
            if document is None:
                return None
            while len(self._versions) >= VERSIONS_KEPT:
                self._versions.pop(next(iter(self._versions)))
            self._versions[version] = Catalogue.decode(document)
        return self._versions[version]

    # --- what came back ---

    async def _store(self, connection: Connection, answer: Answer) -> None:
        """What became of a booking or a cancellation."""
        row, at_ms = answer.due.row, now_ms()
        if answer.waybill is not None and not await self._booked(connection, row, answer.waybill):
            return
        if answer.away is not None:
            # A carrier that was merely away while it was asked for news leaves nothing for people to see to.
            note = answer.away if row.status in (ParcelStatus.TO_BOOK, ParcelStatus.CANCELLING) else None
            await parcels.ask_again(connection, row, at_ms + self._pause_ms(row), note)
        elif answer.refused is not None:
            await self._refused(connection, row, answer.refused, at_ms)
        elif answer.cancelled:
            await parcels.settle(connection, row, ParcelStatus.CANCELLED, None)

    async def _booked(self, connection: Connection, row: ParcelRow, waybill: str) -> bool:
        try:
            async with connection.transaction():
                await parcels.booked(connection, row.order_id, waybill, now_ms() + self._silent_ms)
        except asyncpg.UniqueViolationError:
            log.error("a carrier gave one waybill to two parcels", order=row.order_id, waybill=waybill)
            await parcels.settle(connection, row, ParcelStatus.REFUSED, f"waybill {waybill} is another parcel's")
            return False
        return True

    async def _refused(self, connection: Connection, row: ParcelRow, refused: CarrierRefused, at_ms: int) -> None:
        """The carrier's no: to a booking it is final, and people have to see to it."""
        if row.status == ParcelStatus.CANCELLING and row.waybill is not None and refused.code == UNKNOWN:
            await parcels.settle(connection, row, ParcelStatus.CANCELLED, None)
            return
        if row.status == ParcelStatus.CANCELLING and refused.code == PICKED_UP:
            log.error("a carrier has the parcel of a cancelled order already", order=row.order_id, waybill=row.waybill)
            error = "the order was cancelled when its parcel was on its way"
            await parcels.settle(connection, row, ParcelStatus.PICKED_UP, error, at_ms)  # asked about at once
            return
        if row.status == ParcelStatus.CANCELLING and row.waybill is None:  # never booked, and never will be
            await parcels.settle(connection, row, ParcelStatus.CANCELLED, str(refused))
            return
        log.error(
            "a carrier refuses a parcel: look at the order", order=row.order_id, carrier=row.carrier, why=str(refused)
        )
        if row.status in (ParcelStatus.TO_BOOK, ParcelStatus.CANCELLING):
            await parcels.settle(connection, row, ParcelStatus.REFUSED, str(refused))
        else:  # a parcel that it has, and knows nothing of: it may find it
            await parcels.ask_again(connection, row, at_ms + self._silent_ms, str(refused))

    async def _looked(self, connection: Connection, row: ParcelRow, state: ParcelState) -> None:
        """What the carrier told when it was asked, applied as if it had told it unasked."""
        assert row.waybill is not None  # noqa: S101  it was asked by it
        at_ms, new = now_ms(), []
        told = [tracking.Told(event.id, event.code, event.at_ms, event.detail, event.country) for event in state.events]
        try:
            async with connection.transaction():
                new = await tracking.apply_events(
                    connection, row.carrier, row.waybill, told, now_ms=at_ms, silent_ms=self._silent_ms
                )
        except Refused as unfit:
            log.error("what a carrier tells of a parcel can't be", order=row.order_id, why=str(unfit))
        if new:
            log.info("a carrier was asked, and told what had not come", order=row.order_id, events=len(new))
        elif state.cancelled and row.status == ParcelStatus.BOOKED:
            log.error("a carrier cancelled a parcel: look at the order", order=row.order_id, carrier=row.carrier)
            await parcels.settle(connection, row, ParcelStatus.REFUSED, "the carrier cancelled it")
        else:
            longer = 2 ** min(max(row.attempts - 1, 0), SILENT_DOUBLED)
            await parcels.ask_again(connection, row, at_ms + self._silent_ms * longer, None)

    def _brake(self, answered: bool) -> None:
        """Carriers that are away are asked less and less, whatever is due."""
        self._brake_s = 0.0 if answered else min(max(2 * self._brake_s, BRAKE_S[0]), BRAKE_S[1])
        self._ask_after = time.monotonic() + self._brake_s

    def _pause_ms(self, row: ParcelRow) -> int:
        first, longest = self._again_ms
        return int(min(first * 2 ** min(max(row.attempts - 1, 0), 16), longest))
