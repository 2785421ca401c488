"""A sale at one catalogue version, laid out for the hot path: what a decoded order costs, and its journal record.

Everything that does not depend on the shopper is made once a version: prices by market, the JSON around a line's
quantity, the texts of the record. Pure; relies on the catalogue and on identity.py.
"""

from __future__ import annotations

import json
from operator import mul

import msgspec

from flashsale.sale.border import Border, crossing_json
from flashsale.sale.catalogue import Offer, Sale
from flashsale.sale.identity import SaleIdentity, person_hash
from flashsale.sale.market import MARKETS
from flashsale.sale.order import OrderRequest
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere, QuotedMarket
from flashsale.sale.shipping.lanes import LaneAt
from flashsale.sale.terms import NO_LIMIT, NULL, Beyond, Crossed, Lines, Terms
from flashsale.sale.world import World

RECORD_COLUMNS = (
    "id",
    "sale",
    "shopper",
    "idempotency_key",
    "market",
    "channel",
    "lane",
    "ship_to",
    "skus",
    "quantities",
    "prices",
    "total",
    "currency",
    "catalogue_version",
    "fingerprint",
    "hold_ms",
    "agent",
    "collected",
    "shipping",
    "duties",
    "taxes",
    "due_duty",
    "due_tax",
    "ddp",
    "estimated",
    "lane_number",
    "dispatch_day",
    "promised_by",
    "identity",
    "limit_year",
    "limit_use",
    "drawn",
)
"""A record is a line of PostgreSQL's COPY text with these columns; the ledger writer adds the journal entry's three."""

NO_WORLD = World()
FOR_EVER_MS = 2**47  # six bytes hold it

DEFAULT_CHANNEL = "direct"
"""The channel of an order that names none."""

_encode = msgspec.json.Encoder().encode

BACKSLASH = "\\"

KEPT_MAX = 10_000
"""Lines of the terms that are kept, by market, lane, channel and lines: about two kilobytes each."""


class UnknownMarket(Exception):
    """The sale sells nothing in this market."""


class UnknownSku(Exception):
    """The sale has no such SKU, or has no price for it in this market. The SKU is the first argument."""


# Why an order can't be accepted, whatever the stock: bits, as `reserve.lua` takes them.
LANE_UNAVAILABLE, NOT_SOLD_HERE, OTHER_TOTAL, OVER_IMPORT_LIMIT = 1, 2, 4, 8


class IdentityMissing(Exception):
    """An import, and nobody's verified identity to count it for."""


class PricedOffer:
    """An offer in one market: index, quota, price (minor units), the JSON around an order line's quantity, and the
    numbers of the channels that have a guarantee of it."""

    __slots__ = ("after_quantity", "before_quantity", "guarantees", "index", "index_bytes", "price", "quota", "sku")

    def __init__(self, offer: Offer, price: int, currency: str, world: World) -> None:
        channels = [(channel.id, channel.number) for channel in world.channels]
        self.guarantees = {name: number for name, number in channels if offer.guarantees.get(name)}
        self.index, self.quota, self.price, self.sku = offer.index, offer.quota, price, offer.sku
        self.index_bytes = offer.index.to_bytes(2, "big")
        self.before_quantity = f'{{"sku":{json.dumps(offer.sku)},"quantity":'
        self.after_quantity = f',"price":{{"amount":{price},"currency":"{currency}"}}}}'


class PricedMarket:
    """A market of a sale: its currency and its offers by SKU. `border`: what crossing it costs, None for a sale that
    crosses none; `nothing_json`: what the answer to such a sale's order says of that."""

    __slots__ = ("border", "code", "currency", "nothing_json", "offers")

    def __init__(self, sale: Sale, code: str, world: World, border: Border | None) -> None:
        self.code, self.border = code, border
        self.currency = MARKETS[code].currency
        self.offers = {
            offer.sku: PricedOffer(offer, offer.prices[code], self.currency, world)
            for offer in sale.offers
            if code in offer.prices
        }
        self.nothing_json = crossing_json(self.currency, 0, 0, 0, 0, 0, True, False, None)


class Order:
    """One order on its way: what was asked, what the decision needs of it, and where its answer goes.

    `client` is the front's own (the connection that waits); `answer` the bytes it waits for, None before they are
    known; `place`: among the orders of one request, the front's own. `arrived` is the loop's clock in seconds.

    `agent`: who orders for the shopper, None: the shopper. `identity`: whose import limit it counts for (10 bytes).
    `collected`: the channel has the money. `terms`: what it shares with orders that are alike. `marks`: why it can't be
    accepted, bits. `fields`: of its lines with a quota. `beyond`: what it takes beside units and quota. `record`: its
    journal record. `skus`, `quantities`, `quotas`: of each line.
    """

    __slots__ = (
        "agent",
        "answer",
        "arrived",
        "beyond",
        "client",
        "collected",
        "digest",
        "fields",
        "head",
        "id",
        "identity",
        "key",
        "marks",
        "msgpack",
        "place",
        "quantities",
        "quotas",
        "record",
        "request",
        "sale",
        "shopper",
        "shopper_hash",
        "skus",
        "terms",
    )

    agent: str | None
    answer: bytes | None
    arrived: float
    beyond: Beyond | None
    client: object
    collected: bool
    digest: bytes
    fields: tuple[bytes, ...]
    head: bytes
    id: str
    identity: bytes | None
    key: str
    marks: int
    msgpack: bool
    place: int
    quantities: tuple[int, ...]
    quotas: tuple[int, ...]
    record: bytes
    request: OrderRequest
    sale: PricedSale
    shopper: str
    shopper_hash: bytes
    skus: tuple[int, ...]
    terms: Terms

    def __init__(self) -> None:
        self.agent = self.identity = None
        self.collected = False


class PricedSale:
    """A sale at one catalogue version, priced for the span of time around `at_ms` in which nothing changes at its
    borders: from `from_ms` until before `until_ms` (Valkey's clock); a sale that crosses none is priced for ever."""

    def __init__(
        self,
        sale: Sale,
        version: int,
        partition: int = 0,
        world: World = NO_WORLD,
        at_ms: int = 0,
        former: PricedSale | None = None,
    ) -> None:
        self.sale = sale
        self.id = sale.id
        self.version = version
        self.partition = partition
        self.identity = SaleIdentity(partition, sale.number, sale.key)
        self.hold_ms = sale.hold_ms
        self._number = f"\t{sale.number}\t"
        self._kept: dict[tuple[object, ...], Terms] = {}
        self._kept_lines = 0
        self._parcels: dict[tuple[int, int, int], Beyond] = {}  # one of each, so that they are told apart by identity
        self.world = world
        self.markets: dict[str, PricedMarket] = {}
        self.from_ms, self.until_ms = 0, FOR_EVER_MS
        for code in sale.markets:
            known = former.markets[code] if former is not None else None
            if known is None or (known.border is not None and not known.border.holds_at(at_ms)):
                border = Border(QuotedMarket(sale, code, world, at_ms)) if sale.ships_from else None
                known = PricedMarket(sale, code, world, border)
            self.markets[code] = known
            if known.border is not None:
                self.from_ms = max(self.from_ms, known.border.from_ms)
                self.until_ms = min(self.until_ms, known.border.until_ms)
        self.span = self.from_ms.to_bytes(6, "big") + self.until_ms.to_bytes(6, "big") if sale.ships_from else b""

    def holds_at(self, at_ms: int) -> bool:
        """Whether these prices hold at that time."""
        return self.from_ms <= at_ms < self.until_ms

    def at(self, at_ms: int) -> PricedSale:
        """The same sale and version as it is priced at that time."""
        if self.holds_at(at_ms):
            return self
        return PricedSale(self.sale, self.version, self.partition, self.world, at_ms, self)

    def dispatch_days(self, request: OrderRequest, now_ms: int, days: int) -> list[LaneAt]:
        """The next days on which the order's lanes dispatch, each lane's first `days` of them, the default lane first;
        empty for a sale that crosses no border."""
        market = self.markets[request.market]
        if market.border is None:
            return []
        lines = [(line.sku, line.quantity) for line in request.lines]
        fit = {by.lane.id for by in market.border.quoted.each_lane(lines, request.channel)}
        found: dict[tuple[str, int], LaneAt] = {}
        for name in (lane.id for lane in market.border.quoted.lanes if lane.id in fit):
            at_ms, of_lane = now_ms, 0
            for _ in range(4 * days):  # a span may end for another reason than a day's cut-off
                then = self.world.lanes.at(market.code, self.sale.ships_from, at_ms)
                lane = next((each for each in then if each.id == name), None)
                if lane is None or of_lane == days:
                    break
                if (name, lane.dispatch_day) not in found:
                    found[name, lane.dispatch_day] = lane
                    of_lane += 1
                at_ms = lane.until_ms
        return list(found.values())

    def identify(self, order: Order) -> None:
        """Gives the order its digest and id, from its shopper, its agent if there is one, and its key."""
        identity = self.identity
        order.shopper_hash, digest = identity.hashes(order.shopper, order.key, order.agent)
        order.digest = digest
        order.id = identity.prefix + digest.hex()

    def price(self, order: Order) -> None:
        """Fills in all that the decision needs, at this version's prices. Raises UnknownMarket, UnknownSku or
        IdentityMissing."""
        request = order.request
        lines = request.lines
        alike: tuple[object, ...]
        if len(lines) == 1:  # nine orders of ten
            line = lines[0]
            alike = (request.market, request.lane, request.channel, line.sku, line.quantity)
        else:
            alike = (request.market, request.lane, request.channel, *[(line.sku, line.quantity) for line in lines])
        terms = self._kept.get(alike)
        if terms is None:
            terms = self._terms(request)
            self._kept_lines += len(lines)
            if self._kept_lines > KEPT_MAX:
                self._kept.clear()
                self._kept_lines = len(lines)
            self._kept[alike] = terms
        order.sale, order.terms, order.marks = self, terms, terms.marks
        order.skus, order.quantities, order.quotas, _, limited, _, _, _ = terms.lines
        shopper_hash = order.shopper_hash
        order.fields = (shopper_hash + limited[0],) if len(limited) == 1 else tuple([shopper_hash + o for o in limited])
        expected = request.expected_total
        if expected is not None and (expected.amount != terms.total or expected.currency != terms.currency):
            order.marks |= OTHER_TOTAL

        shopper, key = order.shopper, order.key
        if BACKSLASH in shopper or BACKSLASH in key:
            shopper, key = _escaped(shopper), _escaped(key)
        usual = terms.usual and order.agent is None
        order.beyond = terms.beyond if usual else self._beyond(order, terms)
        if request.ship_to is None and order.identity is None:
            order.head = terms.heads[order.collected]
            if usual:
                whole = terms.whole[order.collected]
                order.record = f"{order.id}{self._number}{shopper}\t{key}{whole}".encode()
                return
            columns = terms.columns(NULL, order.head[1:9])
        else:
            address = NULL if request.ship_to is None else _ship_to(request)
            mark = terms.mark(address, collected=order.collected, identity=order.identity)
            order.head, columns = terms.head_of(mark), terms.columns(address, mark)
        agent = NULL if order.agent is None else _escaped(order.agent)
        rest = terms.rest if usual else _rest(order, terms)
        collected = "t" if order.collected else "f"
        order.record = f"{order.id}{self._number}{shopper}\t{key}{columns}\t{agent}\t{collected}{rest}".encode()

    def _terms(self, request: OrderRequest) -> Terms:
        """The terms of the orders that ask for the same. Raises UnknownMarket or UnknownSku."""
        market = self.markets.get(request.market)
        if market is None:
            raise UnknownMarket(request.market)
        channel = request.channel or DEFAULT_CHANNEL
        lines = _priced(request, market, channel)
        crossed: Crossed | None = None
        refusal: LaneUnavailable | NotSoldHere | None = None
        marks = 0
        if market.border is not None:
            try:
                crossed = market.border.cross(request.lines, request.lane, request.channel)
            except LaneUnavailable as fault:
                marks, refusal = LANE_UNAVAILABLE, fault
            except NotSoldHere as fault:
                marks, refusal = NOT_SOLD_HERE, fault
            else:
                marks = OVER_IMPORT_LIMIT if crossed.over_limit else 0
        parcel = None if crossed is None else crossed.parcel
        return Terms(
            sale=self.id,
            market=market.code,
            channel=channel,
            lane=request.lane,
            currency=market.currency,
            version=self.version,
            hold_ms=self.hold_ms,
            lines=lines,
            crossed=crossed,
            refusal=refusal,
            marks=marks,
            nothing_json=market.nothing_json,
            beyond=None if parcel is None else self._parcels.setdefault(parcel, Beyond(parcel, None, b"", b"")),
        )

    def _beyond(self, order: Order, terms: Terms) -> Beyond:
        """What an import, an order on a guarantee or an agent's order takes. Raises IdentityMissing."""
        crossed, imported, grant = terms.crossed, None, b""
        if crossed is not None and crossed.limit is not None:
            if order.identity is None:
                raise IdentityMissing
            imported = order.identity, crossed.limit.year, crossed.limit.annual, crossed.limit_use
        if order.agent is not None:
            grant = person_hash(order.shopper) + person_hash(order.agent)
        return Beyond(None if crossed is None else crossed.parcel, imported, terms.lines.pools, grant)


def _rest(order: Order, terms: Terms) -> str:
    """The columns of such an order's record from `shipping` on."""
    beyond = order.beyond
    limit = NO_LIMIT
    if beyond is not None and beyond.imported is not None:
        identity, year, _, use = beyond.imported
        limit = f"\t\\\\x{identity.hex()}\t{year}\t{use}"
    # The script adds what each line drew from a guarantee.
    return f"{terms.border}{limit}" + ("\t" if terms.lines.pools else f"\t{NULL}\n")


def _priced(request: OrderRequest, market: PricedMarket, channel: str) -> Lines:
    """The order's lines at the market's prices. Raises UnknownSku."""
    offers = []
    for line in request.lines:
        offer = market.offers.get(line.sku)
        if offer is None:
            raise UnknownSku(line.sku)
        offers.append(offer)
    quantities = tuple([line.quantity for line in request.lines])
    prices = tuple([offer.price for offer in offers])
    pools = bytes([offer.guarantees.get(channel, 0) for offer in offers])
    return Lines(
        skus=tuple([offer.index for offer in offers]),
        quantities=quantities,
        quotas=tuple([offer.quota for offer in offers]),
        prices=prices,
        limited=tuple([offer.index_bytes for offer in offers if offer.quota]),
        total=sum(map(mul, prices, quantities)),
        json=",".join(
            [
                f"{offer.before_quantity}{quantity}{offer.after_quantity}"
                for offer, quantity in zip(offers, quantities, strict=True)
            ]
        ),
        pools=pools if any(pools) else b"",
    )


def _escaped(text: str) -> str:
    """*text* in COPY text: it holds no control characters, so only the backslash needs another."""
    return text.replace(BACKSLASH, BACKSLASH * 2)


def _ship_to(request: OrderRequest) -> str:
    text = _encode(request.ship_to).decode()
    return _escaped(text) if BACKSLASH in text else text
