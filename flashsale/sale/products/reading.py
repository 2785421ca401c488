"""A catalogue as CSV becomes products and findings, row by row, in bounded memory.

A record may hold line breaks, so a row is a record, counted from the header's 1. Several records with one handle are
one product's variants and pictures: title, vendor and the options' names are said by the first. Every fault of a row is
told, and of every row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from typing import BinaryIO, cast

from flashsale.sale.money import AMOUNT_MAX_MINOR, EXPONENTS
from flashsale.sale.products import skus
from flashsale.sale.products.columns import Columns
from flashsale.sale.products.numbers import NotANumber, decimal
from flashsale.sale.products.product import Finding, Options, Product, fault, warning
from flashsale.sale.salefile import (
    BRAND_MAX_CHARACTERS,
    COUNTRY,
    HS_CODE,
    HS_DIGITS_MAX,
    QUOTA_MAX_UNITS,
    STOCK_MAX_UNITS,
    TITLE_MAX_CHARACTERS,
    WEIGHT_MAX_G,
)

ROWS_MAX = 1_000_000
HANDLE_MAX_CHARACTERS = 255
OPTION_MAX_CHARACTERS = 255
BARCODE_MAX_CHARACTERS = 64
CELL_MAX_CHARACTERS = csv.field_size_limit()
LINE_MAX_CHARACTERS = 4 * 1024 * 1024  # of a file that has no line ends no more is held than this

_HEAD_BYTES = 64 * 1024
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_DELIMITERS = (",", ";", "\t")
_NOT_CSV = {
    b"PK\x03\x04": "an Excel or other packed file: save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "an old Excel file: save the sheet as CSV (UTF-8)",
    b"\xff\xfe": "UTF-16: save it as CSV (UTF-8)",
    b"\xfe\xff": "UTF-16: save it as CSV (UTF-8)",
    b"\x1f\x8b": "compressed: unpack it first",
    b"%PDF": "a PDF",
}

Variant = tuple[str, Options]
"""A product's handle and the options of one of its variants."""


def read(
    stream: BinaryIO,
    currency: str,
    known: Mapping[str, Variant] | None = None,
    decimal_mark: str | None = None,
) -> Iterator[Product | Finding]:
    """The products in the file, in its order, and what is to be said of its rows, each behind its row's product.

    The stream is read twice, from where it stands. `currency` of its prices (ISO 4217). `known`: the variant behind
    each SKU that the merchant has; what is not among them is new, and needs a title and a price. `decimal_mark`: "." or
    ",", where the numbers themselves do not show it.
    """
    start = stream.tell()
    head = stream.read(_HEAD_BYTES)
    for magic, what in _NOT_CSV.items():
        if head.startswith(magic):
            yield fault(1, "", "not-csv", f"the file is {what}")
            return
    delimiter = _delimiter(head)

    def records() -> Iterator[list[str]]:
        stream.seek(start + len(codecs.BOM_UTF8) * head.startswith(codecs.BOM_UTF8))
        # Detached, since the stream is the caller's.
        text = io.TextIOWrapper(_Borrowed(stream), encoding="utf-8", errors="surrogateescape", newline="")
        return csv.reader(_lines(text), delimiter=delimiter, strict=True)

    found = records()
    try:
        header = next(found, None)
    except csv.Error as error:
        yield fault(1, "", "not-csv", f"the header can't be read: {error}")
        return
    if not header or not any(name.strip() for name in header):
        yield fault(1, "", "empty", "the file has no header")
        return
    columns = Columns(header)
    faults = columns.faults()
    yield from faults
    if faults:
        return
    repeated = _repeated(found, columns)
    found = records()
    next(found)
    yield from _Reader(columns, currency, known or {}, repeated, decimal_mark).rows(found)


def _repeated(records: Iterator[list[str]], columns: Columns) -> set[str]:
    """SKUs that more than one row gives."""
    at = columns.places.get("sku")
    seen: set[str] = set()
    repeated: set[str] = set()
    if at is None:
        return repeated
    with contextlib.suppress(csv.Error):  # told when the rows are read
        for record in itertools.islice(records, ROWS_MAX):
            sku = record[at].strip().removeprefix("'") if at < len(record) else ""
            if sku in seen:
                repeated.add(sku)
            elif sku:
                seen.add(sku)
    return repeated


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    """Raises csv.Error for a line that is too long to be one."""
    while line := text.readline(LINE_MAX_CHARACTERS):
        if len(line) == LINE_MAX_CHARACTERS and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line has more than {LINE_MAX_CHARACTERS} characters")
        yield line


class _Borrowed(io.BufferedReader):
    """A stream that whoever reads from it does not close."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(cast("io.RawIOBase", stream), _HEAD_BYTES)

    def close(self) -> None:
        """The caller closes it."""


def _delimiter(head: bytes) -> str:
    """What parts the header's columns: whatever makes most of them known."""
    line = head.decode("utf-8", "replace").lstrip("\ufeff").partition("\n")[0].strip("\r")

    def known(delimiter: str) -> int:
        try:
            columns = Columns(next(csv.reader([line], delimiter=delimiter), []))
        except csv.Error:
            return 0
        return len(columns.places) + len(columns.titles)

    return max(_DELIMITERS, key=known)


class _Reader:
    """Reads the records behind a header."""

    def __init__(
        self, columns: Columns, currency: str, known: Mapping[str, Variant], repeated: set[str], mark: str | None
    ) -> None:
        self._columns, self._known, self._repeated, self._mark = columns, known, repeated, mark
        self._currency, self._exponent = currency, EXPONENTS[currency]
        self._at = columns.places
        self._taken: dict[str, int] = {}  # SKU -> its row
        self._variants: dict[bytes, int] = {}  # variant -> its row
        self._said: list[Finding] = []
        # What the first record of a product says of all its variants.
        self._handle = ""
        self._title: dict[str, str] = {}
        self._vendor: str | None = None
        self._option_names: tuple[str, ...] = ()

    def rows(self, records: Iterator[list[str]]) -> Iterator[Product | Finding]:
        row = 1
        while True:
            row += 1
            try:
                record = next(records, None)
            except csv.Error as error:
                yield fault(row, "", "not-csv", f"the row can't be read ({error}): is a quote not closed? Rows"
                            " behind it are not read")  # fmt: skip
                return
            if record is None:
                return
            if row - 1 > ROWS_MAX:
                yield fault(row, "", "too-many-rows", f"at most {ROWS_MAX} rows are read: send the rest by itself")
                return
            product = self._product(row, record) if any(record) else None
            faulty = any(said.severity == "fault" for said in self._said)
            if product is not None and not faulty:
                yield product
            if self._said:
                yield from self._said
                self._said = []

    def _product(self, row: int, record: list[str]) -> Product | None:
        """The row's variant; None for a row without one, or whose faults stand in `_said`."""
        if len(record) > len(self._columns.names) and any(record[len(self._columns.names) :]):
            self._fault(row, "", "too-many-cells", f"the row has {len(record)} cells, the header"
                        f" {len(self._columns.names)}: is a cell with a separator not in quotes?")  # fmt: skip
            return None
        if not self._is_text(row, record):
            return None
        handle = self._text(row, record, "handle", HANDLE_MAX_CHARACTERS)
        if handle is None:
            if not self._said:
                self._fault(row, "handle", "missing", "is blank: each row says whose it is")
            return None
        if handle != self._handle:
            self._handle, self._title, self._vendor, self._option_names = handle, {}, None, ()
        title = self._titles(row, record)
        vendor = self._text(row, record, "vendor", BRAND_MAX_CHARACTERS)
        self._title, self._vendor = self._title | title, vendor or self._vendor
        options = self._options(row, record)
        given = [self._cell(record, field) for field in ("sku", "price", "stock", "option1 value")]
        if not any(given):
            return None  # a picture, or what is said of the product as a whole
        sku, made = self._sku(row, record, handle, options)
        product = Product(
            row=row,
            handle=handle,
            sku=sku,
            options=options,
            title=self._title,
            vendor=self._vendor,
            price=self._price(row, record),
            stock=self._stock(row, record),
            expect=self._units(row, record, "expect", STOCK_MAX_UNITS),
            quota=self._units(row, record, "quota", QUOTA_MAX_UNITS),
            weight_g=self._weight(row, record),
            hs_code=self._hs_code(row, record),
            origin=self._origin(row, record),
            barcode=self._text(row, record, "barcode", BARCODE_MAX_CHARACTERS),
        )
        if product.sku not in self._known:
            self._needs(product, record, made)
        return product

    def _needs(self, product: Product, record: list[str], made: bool) -> None:
        """What a product that is not known yet must say."""
        what = "the product is new" + (f" (SKU {product.sku}, made of handle and options)" if made else "")
        if not product.title and not self._cell(record, "title"):
            self._fault(product.row, "title", "missing", f"is blank, and {what}")
        if product.price is None and not self._cell(record, "price"):
            self._fault(product.row, "price", "missing", f"is blank, and {what}")

    # --- cells ---

    def _cell(self, record: list[str], field: str) -> str:
        column = self._at.get(field)
        return record[column].strip() if column is not None and column < len(record) else ""

    def _fault(self, row: int, field: str, code: str, message: str) -> None:
        self._said.append(fault(row, self._columns.name(field) if field else "", code, message))

    def _warn(self, row: int, field: str, code: str, message: str) -> None:
        self._said.append(warning(row, self._columns.name(field), code, message))

    def _is_text(self, row: int, record: list[str]) -> bool:
        """Whether every cell is UTF-8; says which are not."""
        try:
            "".join(record).encode()
        except UnicodeEncodeError:
            for name, cell in zip(self._columns.names, record, strict=False):
                try:
                    cell.encode()
                except UnicodeEncodeError as error:
                    self._said.append(
                        fault(row, name, "not-utf-8",
                              f"is not UTF-8 from its character {error.start + 1} on: save the file as CSV (UTF-8)")
                    )  # fmt: skip
            return False
        return True

    def _text(self, row: int, record: list[str], field: str, most: int) -> str | None:
        text = self._cell(record, field)
        if not text:
            return None
        return text if self._is_good(row, self._columns.name(field), text, most) else None

    def _is_good(self, row: int, column: str, text: str, most: int) -> bool:
        if len(text) > most:
            self._said.append(fault(row, column, "too-long", f"has {len(text)} characters, at most {most} are kept"))
            return False
        if not text.isprintable() and _CONTROL.search(text):
            self._said.append(
                fault(row, column, "control-character", "holds a line break or another control character")
            )
            return False
        return True

    def _titles(self, row: int, record: list[str]) -> dict[str, str]:
        titles = {}
        text = self._text(row, record, "title", TITLE_MAX_CHARACTERS)
        if text is not None:
            titles["en"] = text
        for language, column in self._columns.titles.items():
            text = record[column].strip() if column < len(record) else ""
            if text and self._is_good(row, self._columns.names[column], text, TITLE_MAX_CHARACTERS):
                titles[language] = text
        return titles

    def _options(self, row: int, record: list[str]) -> Options:
        fields = [f"option{number} name" for number in (1, 2, 3)]
        names = tuple([self._text(row, record, field, OPTION_MAX_CHARACTERS) or "" for field in fields])
        if any(names):
            self._option_names = names
        elif not self._option_names:
            self._option_names = ("", "", "")
        found = []
        for number, name in zip((1, 2, 3), self._option_names, strict=True):
            value = self._cell(record, f"option{number} value")
            if not value or (name.casefold() == "title" and value.casefold() == "default title"):
                continue
            if self._is_good(row, self._columns.name(f"option{number} value"), value, OPTION_MAX_CHARACTERS):
                found.append((name, value))
        return tuple(found)

    # --- who it is ---

    def _sku(self, row: int, record: list[str], handle: str, options: Options) -> tuple[str, bool]:
        """The row's SKU, and whether it was made."""
        variant = "\0".join([handle, *(part for option in options for part in option)]).encode()
        first = self._variants.setdefault(variant, row)
        if first != row:
            self._fault(row, "handle", "variant-twice", f"the same product and options as in row {first}")
        given = self._cell(record, "sku").removeprefix("'")  # what spreadsheets put before digits that are a name
        sku, made = given, False
        if not given:
            sku, made = skus.of_variant(handle, options), True
        elif not skus.is_sku(given):
            sku = skus.rewritten(given)
            self._warn(row, "sku", "sku-rewritten", f"{given[:80]!r} has more than 64 characters, spaces or others than"
                       f" printable ASCII: {sku} stands for it")  # fmt: skip
        other = self._taken.get(sku)
        # Where rows quarrel about it, it stays whose it was; else a known SKU is the same variant under another name.
        owner = self._known.get(sku) if given in self._repeated else None
        if other is not None or (owner is not None and owner != (handle, options)):
            before = f"row {other}" if other is not None else "another product of yours"
            derived = skus.of_repeated(sku, handle, options)
            self._warn(row, "sku", "sku-repeated", f"{sku} is the SKU of {before}: {derived} stands for it here")
            sku, made = derived, True
        if sku in self._taken and first == row:
            self._fault(row, "sku", "sku-taken", f"{sku} is the SKU of row {self._taken[sku]}")
        self._taken.setdefault(sku, row)
        return sku, made

    # --- numbers ---

    def _number(self, row: int, record: list[str], field: str) -> Decimal | None:
        text = self._cell(record, field)
        if not text:
            return None
        try:
            return decimal(text, self._mark)
        except NotANumber as error:
            self._fault(row, field, "not-a-number", str(error))
            return None

    def _price(self, row: int, record: list[str]) -> int | None:
        price = self._number(row, record, "price")
        if price is None:
            return None
        minor = price.scaleb(self._exponent)
        if minor != minor.to_integral_value():
            self._fault(row, "price", "too-many-decimals", f"{price} has more decimals than {self._currency}, which has"
                        f" {self._exponent or 'none'}")  # fmt: skip
        elif minor < 0:
            self._fault(row, "price", "out-of-range", f"{price} is below 0")
        elif minor > AMOUNT_MAX_MINOR:
            self._fault(row, "price", "out-of-range", f"{price} is above the most that a unit may cost")
        else:
            if minor == 0:
                self._warn(row, "price", "no-price", "0 is kept, but what costs nothing is put into no sale")
            return int(minor)
        return None

    def _stock(self, row: int, record: list[str]) -> int | None:
        stock = self._number(row, record, "stock")
        if stock is not None and stock < 0:
            self._warn(row, "stock", "negative-stock", f"{stock} counts as 0: oversold units are not for sale")
            return 0
        return self._whole(row, "stock", stock, STOCK_MAX_UNITS)

    def _units(self, row: int, record: list[str], field: str, most: int) -> int | None:
        return self._whole(row, field, self._number(row, record, field), most)

    def _whole(self, row: int, field: str, number: Decimal | None, most: int) -> int | None:
        if number is None:
            return None
        if number != number.to_integral_value() or not 0 <= number <= most:
            self._fault(row, field, "out-of-range", f"{number} is not a whole number from 0 to {most}")
            return None
        return int(number)

    def _weight(self, row: int, record: list[str]) -> int | None:
        """Grams, the next whole one: a carrier weighs no less."""
        weight = self._number(row, record, "weight_g")
        return self._whole(
            row, "weight_g", None if weight is None else weight.to_integral_value(ROUND_CEILING), WEIGHT_MAX_G
        )

    # --- customs ---

    def _hs_code(self, row: int, record: list[str]) -> str | None:
        text = self._cell(record, "hs_code").replace(" ", "")
        if not text:
            return None
        digits = text.replace(".", "")
        if HS_CODE.fullmatch(text) is None or not 6 <= len(digits) <= HS_DIGITS_MAX:
            self._fault(row, "hs_code", "not-an-hs-code", f"{text[:40]!r} is no HS code such as 8418.21: 6 to"
                        f" {HS_DIGITS_MAX} digits")  # fmt: skip
            return None
        return digits

    def _origin(self, row: int, record: list[str]) -> str | None:
        text = self._cell(record, "origin").upper()
        if not text:
            return None
        if COUNTRY.fullmatch(text) is None:
            self._fault(row, "origin", "not-a-country", f"{text[:40]!r} is no ISO 3166 country code such as CN")
            return None
        return text
