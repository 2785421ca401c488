"""A sale at one catalogue version, laid out for the hot path: what a decoded order costs, and its journal record.

Everything that does not depend on the shopper is made once a version: prices by market, the JSON around a line's
quantity, the texts of the record. Pure; relies on the catalogue and on identity.py.
"""

from __future__ import annotations

import json

import msgspec

from flashsale.sale.catalogue import Offer, Sale
from flashsale.sale.identity import SaleIdentity, fingerprint
from flashsale.sale.market import MARKETS
from flashsale.sale.order import OrderRequest

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
)
"""A record is a line of PostgreSQL's COPY text with these columns; the ledger writer adds the journal entry's three."""

DEFAULT_CHANNEL = "direct"
"""The channel of an order that names none."""

_encode = msgspec.json.Encoder().encode

NULL = "\\N"
"""COPY text's NULL; no column's own text can be this, since a backslash is written twice."""


class UnknownMarket(Exception):
    """The sale sells nothing in this market."""


class UnknownSku(Exception):
    """The sale has no such SKU, or has no price for it in this market. The SKU is the first argument."""


class PricedOffer:
    """An offer in one market: index, quota, price (minor units), and the JSON around an order line's quantity."""

    __slots__ = ("after_quantity", "before_quantity", "index", "price", "quota", "sku")

    def __init__(self, offer: Offer, price: int, currency: str) -> None:
        self.index, self.quota, self.price, self.sku = offer.index, offer.quota, price, offer.sku
        self.before_quantity = f'{{"sku":{json.dumps(offer.sku)},"quantity":'
        self.after_quantity = f',"price":{{"amount":{price},"currency":"{currency}"}}}}'


class PricedMarket:
    """A market of a sale: its currency and its offers by SKU."""

    __slots__ = ("code", "currency", "offers")

    def __init__(self, sale: Sale, code: str) -> None:
        self.code = code
        self.currency = MARKETS[code].currency
        self.offers = {
            offer.sku: PricedOffer(offer, offer.prices[code], self.currency)
            for offer in sale.offers
            if code in offer.prices
        }


class Order:
    """One order on its way: what was asked, what the decision needs of it, and where its answer goes.

    `client` is the front's own (the connection that waits); `answer` the bytes it waits for, None before they are
    known. `arrived` is the loop's clock in seconds.
    """

    __slots__ = (
        "answer",
        "arrived",
        "client",
        "differs",
        "digest",
        "fields",
        "head",
        "id",
        "key",
        "msgpack",
        "prices",
        "quantities",
        "quotas",
        "record",
        "request",
        "sale",
        "shopper",
        "skus",
        "total",
    )

    client: object
    answer: bytes | None
    arrived: float
    differs: bool
    digest: bytes
    fields: list[bytes]
    head: bytes
    id: str
    key: str
    msgpack: bool
    prices: list[int]
    quantities: list[int]
    quotas: list[int]
    record: bytes
    request: OrderRequest
    sale: PricedSale
    shopper: str
    skus: list[int]
    total: int


class PricedSale:
    """A sale at one catalogue version."""

    def __init__(self, sale: Sale, version: int, partition: int = 0) -> None:
        self.sale = sale
        self.id = sale.id
        self.version = version
        self.partition = partition
        self.identity = SaleIdentity(partition, sale.number, sale.key)
        self.markets = {code: PricedMarket(sale, code) for code in sale.markets}
        self.hold_ms = sale.hold_ms
        self._version_bytes = version.to_bytes(3, "big")
        self._record_end = f"\t{version}\t\\\\x%s\t{sale.hold_ms}\n"

    def identify(self, order: Order) -> None:
        """Gives the order its digest and id, from its shopper and key."""
        digest = order.digest = self.identity.digest(order.shopper, order.key)
        order.id = self.identity.prefix + digest.hex()

    def price(self, order: Order) -> None:
        """Fills in all that the decision needs, at this version's prices. Raises UnknownMarket or UnknownSku."""
        request = order.request
        market = self.markets.get(request.market)
        if market is None:
            raise UnknownMarket(request.market)
        offers = market.offers
        skus, quantities, quotas, prices, fields, total = [], [], [], [], [], 0
        shopper_hash = None
        for line in request.lines:
            offer = offers.get(line.sku)
            if offer is None:
                raise UnknownSku(line.sku)
            index, quantity, quota, price = offer.index, line.quantity, offer.quota, offer.price
            skus.append(index)
            quantities.append(quantity)
            quotas.append(quota)
            prices.append(price)
            total += price * quantity
            if quota:
                if shopper_hash is None:
                    shopper_hash = self.identity.shopper_hash(order.shopper)
                fields.append(shopper_hash + index.to_bytes(2, "big"))
        order.sale = self
        order.skus, order.quantities, order.quotas, order.prices, order.fields = (
            skus,
            quantities,
            quotas,
            prices,
            fields,
        )
        order.total = total
        expected = request.expected_total
        order.differs = expected is not None and (expected.amount != total or expected.currency != market.currency)

        if len(skus) == 1:
            arrays, price_array = f"{{{skus[0]}}}\t{{{quantities[0]}}}", f"{{{prices[0]}}}"
        else:
            arrays = f"{_array(skus)}\t{_array(quantities)}"
            price_array = _array(prices)
        asked = (
            f"{request.market}\t{request.channel or DEFAULT_CHANNEL}\t{request.lane or NULL}\t"
            f"{NULL if request.ship_to is None else _ship_to(request)}\t{arrays}"
        )
        mark = fingerprint(asked.encode())
        order.head = b"h" + mark + self._version_bytes
        order.record = (
            f"{order.id}\t{self.sale.number}\t{_escaped(order.shopper)}\t{_escaped(order.key)}\t{asked}\t"
            f"{price_array}\t{total}\t{market.currency}{self._record_end % mark.hex()}"
        ).encode()

    def line_json(self, order: Order) -> str:
        """The `lines` of the order's answer, JSON without the brackets."""
        offers = self.markets[order.request.market].offers
        parts = []
        for line in order.request.lines:
            offer = offers[line.sku]
            parts.append(f"{offer.before_quantity}{line.quantity}{offer.after_quantity}")
        return ",".join(parts)


def _array(values: list[int]) -> str:
    return "{" + ",".join(map(str, values)) + "}"


def _escaped(text: str) -> str:
    """*text* in COPY text: it holds no control characters, so only the backslash needs another."""
    return text.replace("\\", "\\\\") if "\\" in text else text


def _ship_to(request: OrderRequest) -> str:
    return _escaped(_encode(request.ship_to).decode())
