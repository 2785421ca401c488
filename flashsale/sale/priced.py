"""A sale at one catalogue version, laid out for the hot path: what a decoded order costs, and its journal record.

Everything that does not depend on the shopper is made once a version: prices by market, the JSON around a line's
quantity, the texts of the record. Pure; relies on the catalogue and on identity.py.
"""

from __future__ import annotations

import json
from operator import mul

import msgspec

from flashsale.sale.border import NO_BORDER, NO_LIMIT, Beyond, Border, Crossed, crossing_json
from flashsale.sale.catalogue import Offer, Sale
from flashsale.sale.identity import SaleIdentity, fingerprint, person_hash
from flashsale.sale.market import MARKETS
from flashsale.sale.order import OrderRequest
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere, QuotedMarket
from flashsale.sale.shipping.lanes import LaneAt
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
NULL = "\\N"
"""COPY text's NULL; no column's own text can be this, since a backslash is written twice."""


PLAIN = f"\t\\N\tf{NO_BORDER}{NO_LIMIT}\t\\N\n"
"""The columns behind `hold_ms` of an order that crosses no border, draws on no guarantee and has no agent."""


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
    known. `arrived` is the loop's clock in seconds, `lines_json` the lines of its answer without the brackets,
    `crossing_json` what it says of lane, shipping, duty and tax, with a comma before.

    `place`: among the orders of one request, the front's own.
    `agent`: who orders for the shopper, None: the shopper. `identity`: whose import limit it counts for (10 bytes).
    `collected`: the channel has the money. `marks`: why it can't be accepted, bits; `refusal`: the exception that says
    more of it. `crossed`: the cost of the border, None for a sale that crosses none.
    """

    __slots__ = (
        "agent",
        "answer",
        "arrived",
        "beyond",
        "client",
        "collected",
        "crossed",
        "crossing_json",
        "currency",
        "digest",
        "fields",
        "head",
        "id",
        "identity",
        "key",
        "lines_json",
        "marks",
        "msgpack",
        "place",
        "prices",
        "quantities",
        "quotas",
        "record",
        "refusal",
        "request",
        "sale",
        "shopper",
        "shopper_hash",
        "skus",
        "total",
    )

    agent: str | None
    answer: bytes | None
    arrived: float
    beyond: Beyond | None
    client: object
    collected: bool
    crossed: Crossed | None
    crossing_json: str
    currency: str
    digest: bytes
    fields: tuple[bytes, ...]
    head: bytes
    id: str
    identity: bytes | None
    key: str
    lines_json: str
    marks: int
    msgpack: bool
    place: int
    prices: tuple[int, ...]
    quantities: tuple[int, ...]
    quotas: tuple[int, ...]
    record: bytes
    refusal: NotSoldHere | LaneUnavailable | None
    request: OrderRequest
    sale: PricedSale
    shopper: str
    shopper_hash: bytes
    skus: tuple[int, ...]
    total: int

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
        self._version_bytes = version.to_bytes(3, "big")
        self._number = sale.number
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
        market = self.markets.get(request.market)
        if market is None:
            raise UnknownMarket(request.market)
        if len(request.lines) == 1:  # nine orders of ten; it saves a quarter of the time
            line = request.lines[0]
            offer = market.offers.get(line.sku)
            if offer is None:
                raise UnknownSku(line.sku)
            index, quantity, price = offer.index, line.quantity, offer.price
            order.skus, order.quantities, order.quotas, order.prices = (index,), (quantity,), (offer.quota,), (price,)
            order.fields = (order.shopper_hash + offer.index_bytes,) if offer.quota else ()
            order.lines_json = f"{offer.before_quantity}{quantity}{offer.after_quantity}"
            guaranteed = bool(offer.guarantees)
            total = price * quantity
            arrays, price_array = f"{{{index}}}\t{{{quantity}}}", f"{{{price}}}"
        else:
            total, guaranteed = self._price_lines(order, market)
            arrays, price_array = f"{_array(order.skus)}\t{_array(order.quantities)}", _array(order.prices)
        order.sale, order.currency, order.marks = self, market.currency, 0
        lane: str | None = request.lane
        if market.border is None and order.agent is None and not guaranteed and not order.collected:
            order.beyond = order.crossed = None
            order.crossing_json = market.nothing_json if lane is None else _with_lane(market.nothing_json, lane)
            rest = PLAIN
        else:
            total, lane, rest = self._go_beyond(order, market, total, guaranteed)
        order.total = total
        expected = request.expected_total
        if expected is not None and (expected.amount != total or expected.currency != market.currency):
            order.marks |= OTHER_TOTAL

        place = f"{request.market}\t{request.channel or DEFAULT_CHANNEL}\t"
        asked = f"\t{NULL if request.ship_to is None else _ship_to(request)}\t{arrays}"
        # What was asked, not what follows from it: a retry says the same when the default lane is another one.
        mark = fingerprint(f"{place}{request.lane or NULL}{asked}".encode())
        order.head = b"h" + mark + self._version_bytes
        shopper, key = order.shopper, order.key
        if BACKSLASH in shopper or BACKSLASH in key:
            shopper, key = _escaped(shopper), _escaped(key)
        order.record = (
            f"{order.id}\t{self._number}\t{shopper}\t{key}\t{place}{lane or NULL}{asked}\t{price_array}\t{total}"
            f"\t{market.currency}\t{self.version}\t\\\\x{mark.hex()}\t{self.hold_ms}{rest}"
        ).encode()

    def _go_beyond(
        self, order: Order, market: PricedMarket, goods: int, guaranteed: bool
    ) -> tuple[int, str | None, str]:
        """What an order across a border, of an agent, or of a channel with guarantees has more than others: its total,
        its lane, and the columns of its record behind `hold_ms`."""
        request, border = order.request, market.border
        crossed: Crossed | None = None
        order.refusal, order.crossing_json = None, market.nothing_json
        if border is not None:
            try:
                crossed = border.cross(request.lines, request.lane, request.channel)
            except LaneUnavailable as refusal:
                order.marks, order.refusal = LANE_UNAVAILABLE, refusal
            except NotSoldHere as refusal:
                order.marks, order.refusal = NOT_SOLD_HERE, refusal
            else:
                if crossed.limit is None and order.agent is None and not guaranteed and not order.collected:
                    order.crossed, order.beyond, order.crossing_json = crossed, crossed.beyond, crossed.json
                    return crossed.total, crossed.lane, crossed.rest
        elif request.lane is not None:
            order.crossing_json = _with_lane(market.nothing_json, request.lane)
        order.crossed = crossed
        channel = request.channel or DEFAULT_CHANNEL
        pools = bytes([market.offers[line.sku].guarantees.get(channel, 0) for line in request.lines])
        grant = b"" if order.agent is None else person_hash(order.shopper) + person_hash(order.agent)
        imported = self._imported(order, crossed)
        parcel = None if crossed is None else crossed.parcel
        order.beyond = Beyond(parcel, imported, pools if any(pools) else b"", grant)

        agent = NULL if order.agent is None else _escaped(order.agent)
        limit = NO_LIMIT
        if imported is not None:
            limit = f"\t\\\\x{imported[0].hex()}\t{imported[1]}\t{imported[3]}"
        # The script adds what each line drew from a guarantee.
        drawn = "\t" if order.beyond.pools else f"\t{NULL}\n"
        columns = NO_BORDER if crossed is None else crossed.columns
        rest = f"\t{agent}\t{'t' if order.collected else 'f'}{columns}{limit}{drawn}"
        if crossed is None:
            return goods, request.lane, rest
        order.crossing_json = crossed.json
        return crossed.total, crossed.lane, rest

    def _imported(self, order: Order, crossed: Crossed | None) -> tuple[bytes, int, int, int] | None:
        """What the order counts against its buyer's import limit."""
        if crossed is None or crossed.limit is None:
            return None
        if order.identity is None:
            raise IdentityMissing
        if crossed.over_limit:
            order.marks |= OVER_IMPORT_LIMIT
        return order.identity, crossed.limit.year, crossed.limit.annual, crossed.limit_use

    def _price_lines(self, order: Order, market: PricedMarket) -> tuple[int, bool]:
        """The columns of an order of several lines; answers what the goods cost, and whether a channel has a guarantee
        of any."""
        lines = order.request.lines
        offers = []
        for line in lines:
            offer = market.offers.get(line.sku)
            if offer is None:
                raise UnknownSku(line.sku)
            offers.append(offer)
        shopper_hash = order.shopper_hash
        order.skus = tuple([offer.index for offer in offers])
        order.quantities = tuple([line.quantity for line in lines])
        order.quotas = tuple([offer.quota for offer in offers])
        order.prices = tuple([offer.price for offer in offers])
        order.fields = tuple([shopper_hash + offer.index_bytes for offer in offers if offer.quota])
        order.lines_json = ",".join(
            [
                f"{offer.before_quantity}{line.quantity}{offer.after_quantity}"
                for offer, line in zip(offers, lines, strict=True)
            ]
        )
        return sum(map(mul, order.prices, order.quantities)), any(offer.guarantees for offer in offers)


def _with_lane(nothing_json: str, lane: str) -> str:
    """The same with the lane that was asked for: letters, digits, '.', '_' and '-' alone."""
    return nothing_json.replace('"lane":null', f'"lane":"{lane}"', 1)


def _array(values: tuple[int, ...]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _escaped(text: str) -> str:
    """*text* in COPY text: it holds no control characters, so only the backslash needs another."""
    return text.replace(BACKSLASH, BACKSLASH * 2)


def _ship_to(request: OrderRequest) -> str:
    text = _encode(request.ship_to).decode()
    return _escaped(text) if BACKSLASH in text else text
