"""An offer: a SKU in a sale. The sale file makes it, the catalogue keeps it."""

from msgspec import Struct

from flashsale.sale.locales import choose


class Offer(Struct, frozen=True):
    """`title` language -> text; `prices` market code -> minor units of the market's currency; `quota` units a shopper.

    `index` is the offer's place of first appearance in its sale: it never changes, and inside the house it is the SKU.
    `stock` is what the offer began with; the supply that `sale stock` has set since then is Valkey's and the ledger's.
    A quota of 0 is no limit.

    Across borders: `hs_code` (digits) and `origin` (ISO 3166) say what duty is due, `size_mm` the parcel's sides, where
    known. `service` names a kind of lane that this offer alone is entitled to ("supermarket"), "" is the usual ones.
    `windows` market -> (from, until) in ms: when it is sold there, where not always. `guarantees` channel -> units of
    the stock that only this channel's orders draw on, until its rule gives them up. `merchant` is whose it is.
    """

    sku: str
    index: int
    brand: str
    title: dict[str, str]
    stock: int
    quota: int
    weight_g: int
    prices: dict[str, int]
    hs_code: str = ""
    origin: str = ""
    merchant: str = ""
    service: str = ""
    size_mm: tuple[int, ...] = ()
    windows: dict[str, tuple[int, int]] = {}
    guarantees: dict[str, int] = {}

    def title_in(self, *locales: str) -> str:
        """The title that a reader of the locales, best liked first, reads best (see locales.py): else English, else
        whatever the offer has first."""
        return self.title[choose(locales, self.title)]
