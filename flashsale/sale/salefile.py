"""The sale file: TOML text in, a checked SaleFile out, or every fault at once with file, line and field.

Relies on toml_lines.py for where each key stands and on toml_checks.py for its values' types. Nothing unknown, nothing
guessed: a price is text, a date has an offset.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flashsale.sale.market import MARKETS
from flashsale.sale.money import parse_amount
from flashsale.sale.offer import Offer
from flashsale.sale.toml_checks import EARLIEST, LATEST, Checks, field_of, kind_of, shown
from flashsale.sale.toml_checks import Fault as Fault  # read as a part of the sale file
from flashsale.sale.toml_lines import NestedTooDeep, Place, line_numbers

# 10,000 offers of 800 bytes: three titles and a dozen prices each. tomllib reads about 1 MB/s.
FILE_MAX_BYTES = 8 * 1024 * 1024
# A sale file is three deep (offers, prices, SG); tomllib recurses in arrays and is quadratic in the parts of a key.
DEPTH_MAX = 8
# An offer's index is a PostgreSQL int2 (32,767); 10,000 keeps a catalogue below 10 MB.
OFFERS_MAX = 10_000
STOCK_MAX_UNITS = 10**9
# One order line's largest quantity: a higher limit would say less than none.
QUOTA_MAX_UNITS = 10_000
WEIGHT_MAX_G = 100_000_000  # 100 t: beyond any lane
HOLD_MAX_SECONDS = 7 * 86_400
# What fits a page's heading and a parcel's label.
NAME_MAX_CHARACTERS = 120
BRAND_MAX_CHARACTERS = 80
TITLE_MAX_CHARACTERS = 200
SALE_ID = re.compile(r"[a-z0-9-]{1,40}")
SKU = re.compile(r"[!-~]{1,64}")  # printable ASCII without the space
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")  # BCP 47, as far as a title needs it

# Across borders. Of a code of the Harmonised System six digits are the world's, what follows is a country's own.
HS_CODE = re.compile(r"[0-9]{4}(?:\.?[0-9]{1,4})*")
HS_DIGITS_MAX = 10
COUNTRY = re.compile(r"[A-Z]{2}")
SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")  # a merchant's or a channel's id
SERVICES = ("supermarket",)  # kinds of lane that an offer may be entitled to
SIDE_MAX_MM = 20_000  # longer than any container

RETURN_MAX_DAYS = 365
RETURN_DAYS = 30  # where the file says nothing
DAY_MS = 86_400_000

_SALE_KEYS = (
    "id",
    "name",
    "opens_at",
    "closes_at",
    "hold_seconds",
    "extension_seconds",
    "return_days",
    "return_quota",
    "ships_from",
)
# What a sale across borders says of an offer, beside what every sale says; left out of `canonical` where it isn't said.
_BORDER_KEYS = ("hs_code", "origin", "merchant", "service", "size_mm", "windows", "guarantees")
_OFFER_KEYS = ("sku", "brand", "title", "stock", "quota", "weight_g", "prices", *_BORDER_KEYS)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class SaleFileFaults(Exception):
    """Every fault of a sale file, in the order of its lines."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = sorted(faults, key=lambda fault: fault.line)
        super().__init__("\n".join(map(str, self.faults)))


class SaleFile(Struct, frozen=True):
    """A checked sale file, offers in the file's order. `source` names it in faults, `lines` has its fields' lines."""

    id: str
    name: str
    opens_at_ms: int
    closes_at_ms: int
    hold_ms: int
    offers: tuple[Offer, ...]
    source: str
    lines: Mapping[str, int]
    extension_ms: int = 0
    return_ms: int = RETURN_DAYS * DAY_MS
    return_quota: bool = False
    ships_from: str = ""

    def line_of(self, field: str) -> int:
        """The line of a field, else of the nearest thing around it that has one; 1 if nothing has."""
        while field and field not in self.lines:
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return self.lines.get(field, 1)

    def with_id(self, sale_id: str) -> "SaleFile":
        """The same sale under another id (`--as ID`). Raises SaleFileFaults if that is no sale id."""
        if not SALE_ID.fullmatch(sale_id):
            message = f"{shown(sale_id)} is no sale id: 1 to 40 of a-z, 0-9 and -"
            raise SaleFileFaults([Fault(self.source, self.line_of("sale.id"), "sale.id", message)])
        return replace(self, id=sale_id)

    def with_window(self, opens_at_ms: int, closes_at_ms: int) -> "SaleFile":
        """The same sale in another window, in milliseconds. Raises ValueError if it would close before it opens."""
        if opens_at_ms >= closes_at_ms:
            raise ValueError(f"a sale closes after it opens: {opens_at_ms}, {closes_at_ms}")
        return replace(self, opens_at_ms=opens_at_ms, closes_at_ms=closes_at_ms)


def canonical(file: SaleFile) -> bytes:
    """What the file says, as JSON bytes: equal if and only if two files mean the same sale, however they are written.

    Comments, layout, the order of keys, languages and markets don't count; the order of offers does: it is their index.
    """
    said = {field: getattr(file, field) for field in file.__struct_fields__ if field not in ("source", "lines")}
    said["offers"] = [_said(offer) for offer in file.offers]
    if not file.ships_from:
        del said["ships_from"]
    return msgspec.json.encode(said, order="sorted")


def _said(offer: Offer) -> dict[str, object]:
    """What an offer says: a file of before there were borders means what it meant."""
    fields = {field: getattr(offer, field) for field in offer.__struct_fields__}
    return {field: value for field, value in fields.items() if value or field not in _BORDER_KEYS}


def parse_sale_file(text: str | bytes, source: str) -> SaleFile:
    """The sale that a TOML text describes (bytes are UTF-8). `source` is the file's name, for the faults.

    Raises SaleFileFaults with every fault of a readable file, or with the first one that makes it unreadable.
    """
    content = _decoded(text, source)
    try:
        lines = line_numbers(content, DEPTH_MAX, OFFERS_MAX)
    except NestedTooDeep as deep:
        raise SaleFileFaults([Fault(source, deep.line, "", f"nested more than {DEPTH_MAX} deep")]) from None
    try:
        document = tomllib.loads(content)
    except ValueError as error:  # TOMLDecodeError, and what int() and datetime() raise below it
        raise SaleFileFaults([_syntax_fault(error, content, source)]) from None
    return _Reader(source, lines).sale_file(document)


def _decoded(text: str | bytes, source: str) -> str:
    """The text, of bearable size, valid UTF-8, without a byte-order mark."""
    if len(text) > FILE_MAX_BYTES:
        raise SaleFileFaults([Fault(source, 1, "", f"larger than {FILE_MAX_BYTES // 1024**2} MiB")])
    try:
        content = text.decode() if isinstance(text, bytes) else text.encode().decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SaleFileFaults([Fault(source, line, "", f"not UTF-8: byte 0x{error.object[error.start]:02x}")]) from None
    except UnicodeEncodeError as error:
        line = error.object.count("\n", 0, error.start) + 1
        raise SaleFileFaults([Fault(source, line, "", "not Unicode text: a lone surrogate")]) from None
    return content.removeprefix("\ufeff")


def _syntax_fault(error: ValueError, content: str, source: str) -> Fault:
    message = str(error)
    where = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
    if where is None:
        return Fault(source, 1, "", f"not TOML: {message[:200]}")
    last = content.count("\n") + 1 - content.endswith("\n")
    line = int(where[1]) if where[1] else max(last, 1)
    return Fault(source, line, "", f"not TOML: {message[: where.start()][:200]}")


class _Reader(Checks):
    """Turns what tomllib read into a SaleFile and collects the faults on the way."""

    def sale_file(self, document: dict[str, object]) -> SaleFile:
        self.known_keys((), document, ("sale", "offers"))
        sale = self.table(("sale",), document.get("sale"))
        sale_id = name = ""
        opens_at = closes_at = EARLIEST
        hold_seconds = extension_seconds = 0
        return_days, return_quota, ships_from = RETURN_DAYS, False, ""
        if sale is not None:
            self.known_keys(("sale",), sale, _SALE_KEYS)
            sale_id = self.matching(("sale", "id"), sale, SALE_ID, "1 to 40 of a-z, 0-9 and -")
            name = self.text(("sale", "name"), sale, NAME_MAX_CHARACTERS)
            opens_at = self.time(("sale", "opens_at"), sale)
            closes_at = self.time(("sale", "closes_at"), sale)
            hold_seconds = self.integer(("sale", "hold_seconds"), sale, 1, HOLD_MAX_SECONDS)
            if "extension_seconds" in sale:
                extension_seconds = self.integer(("sale", "extension_seconds"), sale, 0, HOLD_MAX_SECONDS)
            if "return_days" in sale:
                return_days = self.integer(("sale", "return_days"), sale, 0, RETURN_MAX_DAYS)
            if "return_quota" in sale:
                return_quota = self.boolean(("sale", "return_quota"), sale)
            if "ships_from" in sale:
                ships_from = self.matching(("sale", "ships_from"), sale, COUNTRY, "an ISO 3166 country code such as CN")
            if EARLIEST < closes_at <= opens_at:
                self.fault(("sale", "closes_at"), "must be after opens_at")
        offers = self._offers(document.get("offers"), across_borders=bool(ships_from))
        if self.faults:
            raise SaleFileFaults(self.faults)
        lines = {field_of(place): line for place, line in self.lines.items()}
        window = ((opens_at - _EPOCH) // _MILLISECOND, (closes_at - _EPOCH) // _MILLISECOND)
        return SaleFile(
            sale_id,
            name,
            *window,
            hold_seconds * 1000,
            offers,
            self.source,
            lines,
            extension_ms=extension_seconds * 1000,
            return_ms=return_days * DAY_MS,
            return_quota=return_quota,
            ships_from=ships_from,
        )

    def _offers(self, tables: object, *, across_borders: bool) -> tuple[Offer, ...]:
        if tables is None or tables == []:
            self.fault(("offers",), "a sale has at least one [[offers]]")
            return ()
        if not isinstance(tables, list):
            self.fault(("offers",), f"must be [[offers]] tables, not {kind_of(tables)}")
            return ()
        if len(tables) > OFFERS_MAX:
            self.fault(("offers", OFFERS_MAX), f"a sale has at most {OFFERS_MAX} offers, not {len(tables)}")
            return ()
        offers = []
        first_place: dict[str, Place] = {}
        for index, table in enumerate(tables):
            place: Place = ("offers", index)
            checked = self.table(place, table)
            if checked is None:
                continue
            offer = self._offer(index, checked)
            first = first_place.setdefault(offer.sku, place)
            if offer.sku and first != place:
                self.fault((*place, "sku"), f"{shown(offer.sku)} is already the SKU of line {self.line(first)}")
            offers.append(offer)
            if across_borders:
                self._needs_for_borders(place, offer, checked)
        return tuple(offers)

    def _needs_for_borders(self, place: Place, offer: Offer, table: dict[str, object]) -> None:
        """Duty needs the kind of goods and where they were made, a lane their weight."""
        for key in ("hs_code", "origin"):
            if key not in table:
                self.fault((*place, key), "is missing: the sale ships across borders")
        if offer.weight_g == 0 and table.get("weight_g") == 0:
            self.fault((*place, "weight_g"), "must be above 0: the sale ships across borders")

    def _offer(self, index: int, table: dict[str, object]) -> Offer:
        place = ("offers", index)
        self.known_keys(place, table, _OFFER_KEYS)
        stock = self.integer((*place, "stock"), table, 0, STOCK_MAX_UNITS)
        prices = self._prices((*place, "prices"), table)
        return Offer(
            sku=self.matching((*place, "sku"), table, SKU, "1 to 64 printable ASCII characters without spaces"),
            index=index,
            brand=self.text((*place, "brand"), table, BRAND_MAX_CHARACTERS),
            title=self._titles((*place, "title"), table),
            stock=stock,
            quota=self.integer((*place, "quota"), table, 0, QUOTA_MAX_UNITS),
            weight_g=self.integer((*place, "weight_g"), table, 0, WEIGHT_MAX_G),
            prices=prices,
            hs_code=self._hs_code((*place, "hs_code"), table),
            origin=self._optional((*place, "origin"), table, COUNTRY, "an ISO 3166 country code such as CN"),
            merchant=self._optional((*place, "merchant"), table, SLUG, "a merchant: 1 to 40 of a-z, 0-9 and -"),
            service=self._service((*place, "service"), table),
            size_mm=self._size_mm((*place, "size_mm"), table),
            windows=self._windows((*place, "windows"), table, prices),
            guarantees=self._guarantees((*place, "guarantees"), table, stock),
        )

    def _optional(self, place: Place, table: dict[str, object], pattern: re.Pattern[str], described: str) -> str:
        return self.matching(place, table, pattern, described) if place[-1] in table else ""

    def _hs_code(self, place: Place, table: dict[str, object]) -> str:
        described = f"an HS code such as 8418.21: 4 to {HS_DIGITS_MAX} digits"
        digits = self._optional(place, table, HS_CODE, described).replace(".", "")
        if len(digits) > HS_DIGITS_MAX:
            self.fault(place, f"{shown(digits)} is not {described}")
        return digits

    def _service(self, place: Place, table: dict[str, object]) -> str:
        service = self._optional(place, table, SLUG, "a kind of lane")
        if service and service not in SERVICES:
            self.fault(place, f"{shown(service)} is not a kind of lane: {', '.join(SERVICES)}")
        return service

    def _size_mm(self, place: Place, table: dict[str, object]) -> tuple[int, ...]:
        """Length, width and height of the parcel."""
        sides = table.get("size_mm", [])
        if "size_mm" in table and not (
            isinstance(sides, list) and len(sides) == 3 and all(type(side) is int for side in sides)
        ):
            self.fault(place, "must be three whole numbers of millimetres, such as [600, 400, 300]")
        elif isinstance(sides, list) and all(1 <= side <= SIDE_MAX_MM for side in sides):
            return tuple(sides)
        else:
            self.fault(place, f"must have sides of 1 to {SIDE_MAX_MM} mm")
        return ()

    def _windows(self, place: Place, table: dict[str, object], prices: dict[str, int]) -> dict[str, tuple[int, int]]:
        """From the midnight of the first day until that of the second, in the market's own zone."""
        windows = self.table(place, table.get("windows", {})) or {}
        read = {}
        for code, days in windows.items():
            if code not in prices:
                self.fault((*place, code), "the offer has no price in this market")
            elif not (isinstance(days, list) and len(days) == 2 and all(type(day) is date for day in days)):
                self.fault((*place, code), "must be two dates, such as [2026-11-01, 2027-03-01]")
            elif not EARLIEST.date() < days[0] < days[1] < LATEST.date():
                self.fault((*place, code), f"must end after it begins, between {EARLIEST.year} and {LATEST.year}")
            elif code in MARKETS:
                read[code] = (_midnight_ms(days[0], code), _midnight_ms(days[1], code))
        return read

    def _guarantees(self, place: Place, table: dict[str, object], stock: int) -> dict[str, int]:
        """Which channels there are is known only where the sale is held."""
        units = self.table(place, table.get("guarantees", {})) or {}
        read = {}
        for channel in units:
            if not SLUG.fullmatch(channel):
                self.fault((*place, channel), "is no channel's id: 1 to 40 of a-z, 0-9 and -")
            read[channel] = self.integer((*place, channel), units, 1, STOCK_MAX_UNITS)
        if sum(read.values()) > stock:
            self.fault(place, f"must not be more than the stock together: {sum(read.values())} of {stock}")
        return read

    def _titles(self, place: Place, table: dict[str, object]) -> dict[str, str]:
        titles = self.table(place, table.get("title"))
        if titles == {}:
            self.fault(place, "must have a title in at least one language")
        titles = titles or {}
        for language in titles:
            if not LANGUAGE.fullmatch(language):
                self.fault((*place, language), "is no language: use codes such as en, zh or zh-TW")
        return {language: self.text((*place, language), titles, TITLE_MAX_CHARACTERS) for language in titles}

    def _prices(self, place: Place, table: dict[str, object]) -> dict[str, int]:
        prices = self.table(place, table.get("prices"))
        if prices == {}:
            self.fault(place, "must have a price in at least one market")
        return {market: self._price((*place, market), market, price) for market, price in (prices or {}).items()}

    def _price(self, place: Place, code: str, price: object) -> int:
        market = MARKETS.get(code)
        if market is None:
            self.fault(place, "is no market: use an ISO 3166 country code that flashsale/sale/market.py lists")
            return 0
        if not isinstance(price, str):
            self.fault(place, f'must be text such as "899.00", not {kind_of(price)}')
            return 0
        try:
            amount_minor = parse_amount(price, market.currency)
        except ValueError as error:
            self.fault(place, str(error))
            return 0
        if amount_minor == 0:
            self.fault(place, "must be above 0")
        return amount_minor


def _midnight_ms(day: date, code: str) -> int:
    """When the day begins in the market."""
    return (datetime.combine(day, time(), ZoneInfo(MARKETS[code].zone)) - _EPOCH) // _MILLISECOND
