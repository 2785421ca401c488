"""A product of a merchant as one row of a catalogue brings it, and what is wrong or worth a word about a row."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Options = tuple[tuple[str, str], ...]
"""(name, value) of each option that tells a variant from its product's others; none for a product without variants."""


class Product(Struct, frozen=True, gc=False):
    """One variant. A field that the row leaves blank is None: it erases nothing that is known already.

    `row`: its record in the file, the header being 1. `sku` is ours: as the file says, or made (see skus.py). `price`
    minor units of the import's currency. `stock` units; `expect`: the stock that the merchant believes there is, which
    must be so. `weight_g` grams; `hs_code` digits; `origin` ISO 3166; `title` by language.
    """

    row: int
    handle: str
    sku: str
    options: Options = ()
    title: dict[str, str] = {}
    vendor: str | None = None
    price: int | None = None
    stock: int | None = None
    expect: int | None = None
    quota: int | None = None
    weight_g: int | None = None
    hs_code: str | None = None
    origin: str | None = None
    barcode: str | None = None


class Finding(Struct, frozen=True, gc=False):
    """Something to say of a row: a "fault" keeps the whole file from being applied, a "warning" does not.

    `column` as the file's header writes it, "" for the row as a whole; `code` names the kind for programs, `message`
    says what, and what to do.
    """

    row: int
    column: str
    severity: Literal["fault", "warning"]
    code: str
    message: str


def fault(row: int, column: str, code: str, message: str) -> Finding:
    return Finding(row, _writable(column), "fault", code, _writable(message))


def warning(row: int, column: str, code: str, message: str) -> Finding:
    return Finding(row, _writable(column), "warning", code, _writable(message))


def _writable(text: str) -> str:
    """The text without what no UTF-8 can hold: a finding quotes the file, which may be in another encoding."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
