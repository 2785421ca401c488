"""The catalogue: every sale and its offers, frozen, under one version.

Merchandising makes a new version for each change, Valkey keeps the encoded versions, every front loads them from there.
An offer's index is its place of first appearance in its sale and never changes: reservation and ledger know SKUs by it.
"""

from collections.abc import Iterator
from functools import cached_property

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flashsale.sale.salefile import OFFERS_MAX, Fault, OfferFile, SaleFile, SaleFileFaults

# A sale's number is two bytes of every order id.
SALE_NUMBER_MAX = 65_535
# The key of a sale's order ids: as many random bytes as blake2b's strength of 128 bits against a birthday needs.
SALE_KEY_BYTES = 32
# The version is three bytes of every hold.
CATALOGUE_VERSION_MAX = 2**24 - 1


class Offer(Struct, frozen=True):
    """A SKU in a sale. `prices`: market code -> minor units of the market's currency; `quota` units a shopper, 0 = no limit.

    `stock` is what the offer began with; the supply that `sale stock` has set since then is Valkey's and the ledger's.
    `title`: language -> text.
    """

    sku: str
    index: int
    brand: str
    title: dict[str, str]
    stock: int
    quota: int
    weight_g: int
    prices: dict[str, int]

    def title_in(self, locale: str) -> str:
        """The title in the locale, else in its language, else in English, else in whatever the offer has first."""
        for name in (locale, locale.partition("-")[0], "en"):
            if name in self.title:
                return self.title[name]
        return next(iter(self.title.values()))


class Sale(Struct, frozen=True, dict=True):
    """A sale: its window and hold in milliseconds, its offers in index order, and the secret key of its order ids.

    `dict=True` gives the cached look-ups below a place; they aren't encoded.
    """

    id: str
    number: int
    key: bytes
    name: str
    opens_at_ms: int
    closes_at_ms: int
    hold_ms: int
    offers: tuple[Offer, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.number <= SALE_NUMBER_MAX:
            raise ValueError(f"sale number {self.number} is outside 1..{SALE_NUMBER_MAX}")
        if len(self.key) != SALE_KEY_BYTES:
            raise ValueError(f"a sale's key is {SALE_KEY_BYTES} bytes, not {len(self.key)}")
        if any(offer.index != place for place, offer in enumerate(self.offers)):
            raise ValueError(f"the offers of sale {self.id!r} are not in index order")

    @classmethod
    def from_file(cls, file: SaleFile, number: int, key: bytes) -> "Sale":
        """A new sale from its file. `number` 1..65535, never used before; `key` 32 random bytes, kept as long as the sale."""
        offers = tuple(_offer(line, index) for index, line in enumerate(file.offers))
        return cls(file.id, number, key, file.name, file.opens_at_ms, file.closes_at_ms, file.hold_ms, offers)

    @cached_property
    def by_sku(self) -> dict[str, Offer]:
        """The offers by SKU."""
        return {offer.sku: offer for offer in self.offers}

    @cached_property
    def markets(self) -> frozenset[str]:
        """The markets that at least one offer is priced in."""
        return frozenset(market for offer in self.offers for market in offer.prices)

    # The key makes order ids unguessable: it must not reach a log by way of a printed sale.
    def __repr__(self) -> str:
        return f"Sale(id={self.id!r}, number={self.number}, offers={len(self.offers)})"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        yield "id", self.id
        yield "number", self.number
        yield "offers", len(self.offers)


class Catalogue(Struct, frozen=True, dict=True):
    """All sales under one version, 1..CATALOGUE_VERSION_MAX; 0 is the empty catalogue that nothing was published under."""

    version: int
    sales: tuple[Sale, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.version <= CATALOGUE_VERSION_MAX:
            raise ValueError(f"catalogue version {self.version} is outside 0..{CATALOGUE_VERSION_MAX}")
        if len(self._by_id) != len(self.sales) or len(self._by_number) != len(self.sales):
            raise ValueError("two sales of the catalogue share an id or a number")

    @cached_property
    def _by_id(self) -> dict[str, Sale]:
        return {sale.id: sale for sale in self.sales}

    @cached_property
    def _by_number(self) -> dict[int, Sale]:
        return {sale.number: sale for sale in self.sales}

    def sale(self, sale_id: str) -> Sale | None:
        """The sale of that id, None if there is none."""
        return self._by_id.get(sale_id)

    def by_number(self, number: int) -> Sale | None:
        """The sale of that number, None if there is none."""
        return self._by_number.get(number)

    def with_sale(self, sale: Sale) -> "Catalogue":
        """The next version, in which `sale` takes the place of the one of its id, or is added."""
        if sale.id in self._by_id:
            sales = tuple(sale if each.id == sale.id else each for each in self.sales)
        else:
            sales = (*self.sales, sale)
        return Catalogue(self.version + 1, sales)

    def encode(self) -> bytes:
        """The catalogue as MessagePack, sale keys included: for Valkey and the ledger only."""
        return _encoder.encode(self)

    @staticmethod
    def decode(document: bytes) -> "Catalogue":
        """The catalogue that `encode` wrote. Raises msgspec.DecodeError (ValidationError is one) for anything else."""
        return _decoder.decode(document)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Catalogue)


def updated(old: Sale, new: SaleFile) -> Sale:
    """`old` after `flashsale sale update`: the new file's name, window, hold, titles, brands, weights, quotas and prices.

    Offers keep their index; new ones are appended in the file's order. A hold is repriced at the version that took it,
    and orders name SKUs by index, so nothing may disappear: raises SaleFileFaults, with every fault, where the new file
    leaves out an offer or a market, changes a stock, has another id or makes the sale too long.
    """
    faults: list[Fault] = []

    def fault(field: str, message: str) -> None:
        faults.append(Fault(new.source, new.line_of(field), field, message))

    if new.id != old.id:
        fault("sale.id", f"must stay {old.id!r}")
    places = {line.sku: place for place, line in enumerate(new.offers)}
    for offer in old.offers:
        place = places.get(offer.sku)
        if place is None:
            fault("offers", f"offer {offer.sku!r} is missing: an offer is never removed (suspend it instead)")
            continue
        line = new.offers[place]
        for market in offer.prices.keys() - line.prices.keys():
            fault(f"offers[{place}].prices", f"market {market} of {offer.sku!r} is missing: a market is never removed")
        if line.stock != offer.stock:
            field = f"offers[{place}].stock"
            fault(
                field,
                f"must stay {offer.stock}: the supply is changed with `flashsale sale stock {old.id} {offer.sku}`",
            )
    added = [line for line in new.offers if line.sku not in old.by_sku]
    if len(old.offers) + len(added) > OFFERS_MAX:
        fault("offers", f"a sale has at most {OFFERS_MAX} offers")
    if faults:
        raise SaleFileFaults(faults)
    kept = [_offer(new.offers[places[offer.sku]], offer.index) for offer in old.offers]
    appended = [_offer(line, index) for index, line in enumerate(added, len(kept))]
    return replace(
        old,
        name=new.name,
        opens_at_ms=new.opens_at_ms,
        closes_at_ms=new.closes_at_ms,
        hold_ms=new.hold_ms,
        offers=(*kept, *appended),
    )


def _offer(line: OfferFile, index: int) -> Offer:
    return Offer(line.sku, index, line.brand, line.title, line.stock, line.quota, line.weight_g, line.prices)
