"""A merchant's products as offers of a sale: what is new is added, what is there changed, nothing taken away. Pure.

An offer's supply is Valkey's once the sale has it: it changes only where the merchant says what it is believed to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from flashsale.sale.offer import Offer
from flashsale.sale.products.product import Finding, Product, fault, warning
from flashsale.sale.salefile import OFFERS_MAX, SaleFile


class StockEdit(NamedTuple):
    """A supply to be set: `to` units if it is `expect` now."""

    row: int
    sku: str
    to: int
    expect: int


class Merged(NamedTuple):
    """The sale with the products in it, how many offers were added, the supplies to be set, and what is to be said."""

    file: SaleFile
    added: int
    edits: list[StockEdit]
    findings: list[Finding]


def merged(file: SaleFile, merchant: str, market: str, products: Iterable[tuple[Product, int | None]]) -> Merged:
    """Puts the products, as the merchant has them now, into the sale: `price` is that of the market. With each comes
    the stock that its row says is believed to be there, None: it says none."""
    offers = list(file.offers)
    places = {offer.sku: place for place, offer in enumerate(offers)}
    edits: list[StockEdit] = []
    said: list[Finding] = []
    for product, expect in products:
        place = places.get(product.sku)
        if place is not None:
            offer = offers[place]
            if offer.merchant != merchant:
                said.append(fault(product.row, "SKU", "not-yours", f"{product.sku} is another merchant's in this sale"))
                continue
            offers[place] = _changed(offer, product, market)
            if product.stock is not None and expect is not None:
                edits.append(StockEdit(product.row, product.sku, product.stock, expect))
            elif product.stock is not None and product.stock != offer.stock:
                said.append(warning(product.row, "Stock", "stock-kept", f"{product.sku} is in the sale: its supply"
                            " changes only where a column Expected Inventory Qty says what it is now"))  # fmt: skip
            continue
        if not product.price:
            said.append(warning(product.row, "Price", "not-offered", f"{product.sku} has no price in {market}: it is"
                        " not put into the sale"))  # fmt: skip
            continue
        missing = _missing(product, file)
        said += missing
        if not missing:
            places[product.sku] = len(offers)
            offers.append(_new(product, merchant, market, len(offers)))
    added = len(offers) - len(file.offers)
    if len(offers) > OFFERS_MAX:
        said.append(fault(1, "", "too-many-offers", f"the sale would have {len(offers)} offers, at most {OFFERS_MAX}:"
                    " choose what is to be sold in it"))  # fmt: skip
    return Merged(replace(file, offers=tuple(offers)), added, edits, said)


def _missing(product: Product, file: SaleFile) -> list[Finding]:
    """What customs and carriers need to know of goods that cross a border."""
    if not file.ships_from:
        return []
    needed = (("HS Code", product.hs_code), ("Country of Origin", product.origin), ("Grams", product.weight_g))
    return [
        fault(product.row, column, "missing", f"is not known of {product.sku}, and the sale ships across borders")
        for column, value in needed
        if not value
    ]


def _new(product: Product, merchant: str, market: str, index: int) -> Offer:
    return Offer(
        sku=product.sku,
        index=index,
        brand=product.vendor or merchant,
        title=_titles(product, {}),
        stock=product.stock or 0,
        quota=product.quota or 0,
        weight_g=product.weight_g or 0,
        prices={market: product.price or 0},
        hs_code=product.hs_code or "",
        origin=product.origin or "",
        merchant=merchant,
    )


def _changed(offer: Offer, product: Product, market: str) -> Offer:
    return replace(
        offer,
        brand=product.vendor or offer.brand,
        title=_titles(product, offer.title),
        quota=offer.quota if product.quota is None else product.quota,
        weight_g=product.weight_g or offer.weight_g,
        prices=offer.prices | ({market: product.price} if product.price else {}),
        hs_code=product.hs_code or offer.hs_code,
        origin=product.origin or offer.origin,
    )


def _titles(product: Product, before: dict[str, str]) -> dict[str, str]:
    """A variant is told from its product's others by its options."""
    options = " / ".join(value for _, value in product.options)
    return before | {
        language: f"{title} – {options}"[:200] if options else title for language, title in product.title.items()
    }
