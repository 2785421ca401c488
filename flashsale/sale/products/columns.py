"""The columns of a catalogue: Shopify's product CSV, in its old and its new headers, and ours for customs and sales.

A header is known by its words, whatever their case. What is not known is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flashsale.sale.products.product import Finding, fault

COLUMNS_MAX = 1000

HEADERS: dict[str, tuple[str, ...]] = {
    "handle": ("handle", "url handle"),
    "title": ("title",),
    "vendor": ("vendor",),
    "option1 name": ("option1 name",),
    "option1 value": ("option1 value",),
    "option2 name": ("option2 name",),
    "option2 value": ("option2 value",),
    "option3 name": ("option3 name",),
    "option3 value": ("option3 value",),
    "sku": ("variant sku", "sku"),
    "price": ("variant price", "price"),
    "stock": ("variant inventory qty", "inventory quantity"),
    "expect": ("expected inventory qty", "expected inventory quantity"),
    "quota": ("quota",),
    "weight_g": ("variant grams", "weight value (grams)"),
    "barcode": ("variant barcode", "barcode"),
    "hs_code": ("hs code", "hs-code", "harmonized system code", "harmonised system code", "variant hs code"),
    "origin": ("country of origin", "country/region of origin", "origin", "coo", "variant country of origin"),
    "image": ("image src", "product image url"),
}
"""What a column means -> the headers that it may have."""

_FIELDS = {header: field for field, headers in HEADERS.items() for header in headers}
_TITLE_IN = re.compile(r"title \(([a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)\)", re.IGNORECASE)
_REQUIRED = ("handle",)


class Columns:
    """Where each field stands in a record. `places` field -> column from 0; `titles` language -> column; `names` the
    header's own text of each column."""

    __slots__ = ("names", "places", "titles")

    def __init__(self, header: Sequence[str]) -> None:
        self.names = [name.strip() for name in header]
        self.places: dict[str, int] = {}
        self.titles: dict[str, int] = {}
        for column, name in enumerate(self.names):
            field = _FIELDS.get(_words(name))
            language = _TITLE_IN.fullmatch(" ".join(name.split()))
            if field is not None:
                self.places.setdefault(field, column)
            elif language is not None:
                self.titles.setdefault(language[1], column)

    def name(self, field: str) -> str:
        """The field's header, as the file writes it."""
        column = self.places.get(field)
        return self.names[column] if column is not None else HEADERS[field][0]

    def faults(self) -> list[Finding]:
        """What keeps the file from being read at all."""
        found = []
        if len(self.names) > COLUMNS_MAX:
            found.append(fault(1, "", "too-many-columns", f"{len(self.names)} columns, at most {COLUMNS_MAX} are read"))
        for field in _REQUIRED:
            if field not in self.places:
                wanted = " or ".join(repr(header.title()) for header in HEADERS[field])
                there = ", ".join(repr(name[:40]) for name in self.names[:20]) or "none"
                found.append(fault(1, "", "column-missing", f"there is no column {wanted}; there are: {there}"))
        for column, name in enumerate(self.names):
            first = self.places.get(_FIELDS.get(_words(name), ""), column)
            if first != column:
                found.append(
                    fault(1, name, "column-twice", f"says the same as the column {self.names[first]!r}: leave one out")
                )
        return found


def _words(name: str) -> str:
    return " ".join(name.casefold().split())
