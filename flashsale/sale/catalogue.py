"""The catalogue: every sale and its offers, frozen, under one version.

Merchandising makes a new version for each change, Valkey keeps the encoded versions, every front loads them from there.
An offer's index is its place of first appearance in its sale and never changes: reservation and ledger know SKUs by it.
"""

from functools import cached_property

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flashsale.sale.offer import Offer as Offer  # read as a part of the catalogue
from flashsale.sale.salefile import DAY_MS, OFFERS_MAX, RETURN_DAYS, Fault, SaleFile, SaleFileFaults
from flashsale.sale.world import World

# A sale's number is two bytes of every order id.
SALE_NUMBER_MAX = 65_535
# The key of a sale's order ids: as many random bytes as blake2b's strength of 128 bits against a birthday needs.
SALE_KEY_BYTES = 32
# The version is three bytes of every hold.
CATALOGUE_VERSION_MAX = 2**24 - 1


class Sale(Struct, frozen=True, dict=True):
    """A sale: its window and hold in milliseconds, its offers in index order, and the secret key of its order ids.

    `extension_ms`: by how much a shopper may extend a hold, once; 0: not at all. `return_ms`: how long after the last
    shipment or delivery units may be returned. `return_quota`: whether a return lets the shopper buy as many again.
    `ships_from`: the country (ISO 3166) that its parcels cross borders from, with lanes, tax and duty; "": prices are
    all that is paid, and nothing is said of shipping.

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
    extension_ms: int = 0
    return_ms: int = RETURN_DAYS * DAY_MS
    return_quota: bool = False
    ships_from: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.number <= SALE_NUMBER_MAX:
            raise ValueError(f"sale number {self.number} is outside 1..{SALE_NUMBER_MAX}")
        if len(self.key) != SALE_KEY_BYTES:
            raise ValueError(f"a sale's key is {SALE_KEY_BYTES} bytes, not {len(self.key)}")
        if any(offer.index != place for place, offer in enumerate(self.offers)):
            raise ValueError(f"the offers of sale {self.id!r} are not in index order")

    @classmethod
    def from_file(cls, file: SaleFile, number: int, key: bytes) -> "Sale":
        """A new sale from its file. `number` 1..65535, never used before; `key` 32 random bytes, for ever."""
        window = (file.opens_at_ms, file.closes_at_ms, file.hold_ms)
        rules = (file.extension_ms, file.return_ms, file.return_quota)
        return cls(file.id, number, key, file.name, *window, file.offers, *rules, file.ships_from)

    @cached_property
    def by_sku(self) -> dict[str, Offer]:
        """The offers by SKU."""
        return {offer.sku: offer for offer in self.offers}

    @cached_property
    def by_market(self) -> dict[str, tuple[Offer, ...]]:
        """The offers that are priced in each market, in index order."""
        priced: dict[str, list[Offer]] = {}
        for offer in self.offers:
            for market in offer.prices:
                priced.setdefault(market, []).append(offer)
        return {market: tuple(offers) for market, offers in priced.items()}

    @cached_property
    def markets(self) -> frozenset[str]:
        """The markets that at least one offer is priced in."""
        return frozenset(self.by_market)

    # The key makes order ids unguessable: it must not reach a log by way of a printed sale.
    def __repr__(self) -> str:
        return f"Sale(id={self.id!r}, number={self.number}, offers={len(self.offers)})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [("id", self.id), ("number", self.number), ("offers", len(self.offers))]


class Catalogue(Struct, frozen=True, dict=True):
    """All sales under one version, 1..CATALOGUE_VERSION_MAX; 0 is the empty catalogue before the first publication."""

    version: int
    sales: tuple[Sale, ...]
    world: World = World()

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
        return Catalogue(self.version + 1, sales, self.world)

    def with_world(self, world: World) -> "Catalogue":
        """The next version, in which the world is another."""
        return Catalogue(self.version + 1, self.sales, world)

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
    """`old` after `flashsale sale update`: all that the new file says of window, hold and offers, except their stock.

    Offers keep their index; new ones are appended in the file's order. A hold is repriced at the version that took it,
    and orders name SKUs by index, so nothing may disappear: raises SaleFileFaults, with every fault, where the new file
    leaves out an offer or a market, changes a stock, has another id or makes the sale too long.
    """
    faults: list[Fault] = []

    def fault(field: str, message: str) -> None:
        faults.append(Fault(new.source, new.line_of(field), field, message))

    if new.id != old.id:
        fault("sale.id", f"must stay {old.id!r}")
    rewritten = {offer.sku: offer for offer in new.offers}
    for offer in old.offers:
        now = rewritten.get(offer.sku)
        if now is None:
            fault("offers", f"offer {offer.sku!r} is missing: an offer is never removed (suspend it instead)")
            continue
        field = f"offers[{now.index}]"
        for market in sorted(offer.prices.keys() - now.prices.keys()):
            fault(f"{field}.prices", f"market {market} of {offer.sku!r} is missing: a market is never removed")
        if now.stock != offer.stock:
            remedy = f"`flashsale sale stock {old.id} {offer.sku}` changes the supply"
            fault(f"{field}.stock", f"must stay {offer.stock}: {remedy}")
        if now.guarantees != offer.guarantees:
            held = ", ".join(f"{channel} = {units}" for channel, units in sorted(offer.guarantees.items()))
            fault(f"{field}.guarantees", f"must stay {{ {held} }}" if held else "must stay absent")
        if now.guarantees != offer.guarantees:
            fault(f"{field}.guarantees", "must stay as they are: what is left of them is the channels' by now")
    added = [offer for offer in new.offers if offer.sku not in old.by_sku]
    if len(old.offers) + len(added) > OFFERS_MAX:
        fault("offers", f"a sale has at most {OFFERS_MAX} offers")
    if faults:
        raise SaleFileFaults(faults)
    kept = [replace(rewritten[offer.sku], index=offer.index) for offer in old.offers]
    appended = [replace(offer, index=index) for index, offer in enumerate(added, len(kept))]
    return replace(
        old,
        name=new.name,
        opens_at_ms=new.opens_at_ms,
        closes_at_ms=new.closes_at_ms,
        hold_ms=new.hold_ms,
        extension_ms=new.extension_ms,
        return_ms=new.return_ms,
        return_quota=new.return_quota,
        ships_from=new.ships_from,
        offers=(*kept, *appended),
    )
