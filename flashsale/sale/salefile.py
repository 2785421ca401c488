"""The sale file: TOML text in, a checked SaleFile out, or every fault at once with file, line and field.

tomllib knows values but not lines, so `_line_numbers` walks the text once more, token by token, for where each key
stands. That walk comes first: it also stops what would make tomllib recurse or run in squares. Strict types, nothing
unknown, nothing guessed: a price is text, a date has an offset, `true` is no number.
"""

import difflib
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flashsale.sale.market import MARKETS
from flashsale.sale.money import parse_amount
from flashsale.sale.offer import Offer

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
# A day in seconds, milliseconds or microseconds put in the wrong place lands far outside these.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)
# What fits a page's heading and a parcel's label.
NAME_MAX_CHARACTERS = 120
BRAND_MAX_CHARACTERS = 80
TITLE_MAX_CHARACTERS = 200
SALE_ID = re.compile(r"[a-z0-9-]{1,40}")
SKU = re.compile(r"[!-~]{1,64}")  # printable ASCII without the space
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}")  # BCP 47, as far as a title needs it

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
)
_OFFER_KEYS = ("sku", "brand", "title", "stock", "quota", "weight_g", "prices")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

Place: TypeAlias = tuple[str | int, ...]  # where a value stands: ("offers", 3, "prices", "SG")


class Fault(NamedTuple):
    """One fault: the file's name, the line (from 1), the field (`offers[3].prices.SG`, or "") and what is wrong."""

    source: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (f"{self.source}:{self.line}", self.field, self.message) if part)


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

    def line_of(self, field: str) -> int:
        """The line of a field, else of the nearest thing around it that has one; 1 if nothing has."""
        while field and field not in self.lines:
            field = field[: max(field.rfind("."), field.rfind("["), 0)]
        return self.lines.get(field, 1)

    def with_id(self, sale_id: str) -> "SaleFile":
        """The same sale under another id (`--as ID`). Raises SaleFileFaults if that is no sale id."""
        if not SALE_ID.fullmatch(sale_id):
            message = f"{_shown(sale_id)} is no sale id: 1 to 40 of a-z, 0-9 and -"
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
    return msgspec.json.encode(said, order="sorted")


def parse_sale_file(text: str | bytes, source: str) -> SaleFile:
    """The sale that a TOML text describes (bytes are UTF-8). `source` is the file's name, for the faults.

    Raises SaleFileFaults with every fault of a readable file, or with the first one that makes it unreadable.
    """
    content = _decoded(text, source)
    lines = _line_numbers(content, source)
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


# --- where things stand ----------------------------------------------------------------------------------------------

# Possessive, so that no token is scanned twice: an unclosed string ends the walk, it doesn't start it again.
_TOKEN = re.compile(
    r"""
      (?P<space> [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string> \"{3} (?: [^"\\] | \\. | "{1,2}(?!") )*+ "{3,5} | '{3} (?: [^'] | '{1,2}(?!') )*+ '{3,5} )
    | (?P<unclosed> \"{3} | '{3} )
    | (?P<word> "(?: [^"\\\n] | \\[^\n] )*+" | '[^'\n]*+' | [^ \t\r\n"'\#\[\]{}=,.]++ )
    | (?P<mark> [\[\]{}=,.] )
    | (?P<broken> . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Lines:
    """Where the keys and tables of a TOML text stand. Right for TOML; of anything else, tomllib tells what is wrong."""

    def __init__(self, source: str) -> None:
        self.at: dict[Place, int] = {}
        self._source = source
        self._line = 1
        self._last_index: dict[Place, int] = {}  # of each array of tables
        self._table: Place = ()  # the table of the last header
        self._open: list[tuple[str, Place, int]] = []  # brackets around the token: mark, place, index in an array
        self._key: list[str] = []
        self._key_line = 1
        self._value: Place | None = None  # the value that is being read; None where a key is
        self._header = 0  # brackets of the header that is being read

    def walk(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            kind, part = token.lastgroup, token[0]
            if kind == "newline":
                self._newline()
            elif kind == "word":
                self._word(part)
            elif kind == "mark":
                self._mark(part, text[token.end() : token.end() + 1])
            elif kind == "string":
                self._line += part.count("\n")
            elif kind != "space":
                return

    def _newline(self) -> None:
        self._line += 1
        if not self._open:
            self._key, self._value, self._header = [], None, 0

    def _word(self, part: str) -> None:
        if self._value is not None:
            return
        if not self._key:
            self._key_line = self._line
        self._key.append(_key_text(part))
        self._check_depth(len(self._key))

    def _mark(self, mark: str, following: str) -> None:
        if self._header:
            if mark == "]":
                self._enter_table()
        elif self._value is None:
            self._mark_at_key(mark, following)
        elif mark in "[{":
            self._open_bracket(mark, self._value)
        elif mark in "]}":
            self._close_bracket()
        elif mark == "," and self._open:
            self._next_element()

    def _mark_at_key(self, mark: str, following: str) -> None:
        if mark == "=":
            self._value = self._note((self._open[-1][1] if self._open else self._table), self._key)
            self._key = []
        elif mark == "[" and not self._open and not self._key:
            self._header = 2 if following == "[" else 1
        elif mark == "}" and self._open:
            self._close_bracket()

    def _note(self, base: Place, key: list[str]) -> Place:
        place = base
        for part in key:
            place = (*place, part)
            self.at.setdefault(place, self._key_line)
        return place

    def _enter_table(self) -> None:
        """After `[a.b]` or `[[a.b]]`: names on the way mean the last table of an array of that name."""
        if not self._key:  # the second "[" of "[[", or nothing between the brackets
            return
        place: Place = ()
        for part in self._key[:-1]:
            place = self._note(place, [part])
            if place in self._last_index:
                place = (*place, self._last_index[place])
        place = self._note(place, self._key[-1:])
        if self._header == 2:
            self._last_index[place] = self._last_index.get(place, -1) + 1
            place = (*place, self._last_index[place])
        elif place in self._last_index:
            place = (*place, self._last_index[place])
        self.at.setdefault(place, self._key_line)
        self._table, self._key, self._header = place, [], 0

    def _open_bracket(self, mark: str, place: Place) -> None:
        around, _, index = self._open[-1] if self._open else ("", (), 0)
        if around == "[" and index <= OFFERS_MAX:  # a list of a million is refused anyway: don't remember its lines
            self.at.setdefault(place, self._line)
        self._open.append((mark, place, 0))
        self._check_depth(len(self._open))
        self._value = (*place, 0) if mark == "[" else None

    def _close_bracket(self) -> None:
        if self._open:
            _, self._value, _ = self._open.pop()
            self._key = []

    def _next_element(self) -> None:
        mark, place, index = self._open[-1]
        if mark == "{":
            self._value = None
        else:
            self._open[-1] = (mark, place, index + 1)
            self._value = (*place, index + 1)

    def _check_depth(self, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise SaleFileFaults([Fault(self._source, self._line, "", f"nested more than {DEPTH_MAX} deep")])


def _key_text(part: str) -> str:
    """A key as tomllib will name it: quotes off, escapes resolved."""
    if part[0] == "'" or (part[0] == '"' and "\\" not in part):
        return part[1:-1]
    if part[0] == '"':
        try:
            return str(tomllib.loads(f"key = {part}")["key"])
        except ValueError:
            return part
    return part


def _line_numbers(text: str, source: str) -> dict[Place, int]:
    """The line of every table and key, by its place. Raises SaleFileFaults for what is nested deeper than DEPTH_MAX."""
    lines = _Lines(source)
    lines.walk(text)
    return lines.at


# --- what things are -------------------------------------------------------------------------------------------------


class _Reader:
    """Turns what tomllib read into a SaleFile and collects the faults on the way."""

    def __init__(self, source: str, lines: dict[Place, int]) -> None:
        self._source = source
        self._lines = lines
        self._faults: list[Fault] = []

    def sale_file(self, document: dict[str, object]) -> SaleFile:
        self._known_keys((), document, ("sale", "offers"))
        sale = self._table(("sale",), document.get("sale"))
        sale_id = name = ""
        opens_at = closes_at = EARLIEST
        hold_seconds = extension_seconds = 0
        return_days, return_quota = RETURN_DAYS, False
        if sale is not None:
            self._known_keys(("sale",), sale, _SALE_KEYS)
            sale_id = self._matching(("sale", "id"), sale, SALE_ID, "1 to 40 of a-z, 0-9 and -")
            name = self._text(("sale", "name"), sale, NAME_MAX_CHARACTERS)
            opens_at = self._time(("sale", "opens_at"), sale)
            closes_at = self._time(("sale", "closes_at"), sale)
            hold_seconds = self._integer(("sale", "hold_seconds"), sale, 1, HOLD_MAX_SECONDS)
            if "extension_seconds" in sale:
                extension_seconds = self._integer(("sale", "extension_seconds"), sale, 0, HOLD_MAX_SECONDS)
            if "return_days" in sale:
                return_days = self._integer(("sale", "return_days"), sale, 0, RETURN_MAX_DAYS)
            if "return_quota" in sale:
                return_quota = self._boolean(("sale", "return_quota"), sale)
            if EARLIEST < closes_at <= opens_at:
                self._fault(("sale", "closes_at"), "must be after opens_at")
        offers = self._offers(document.get("offers"))
        if self._faults:
            raise SaleFileFaults(self._faults)
        lines = {_field(place): line for place, line in self._lines.items()}
        window = ((opens_at - _EPOCH) // _MILLISECOND, (closes_at - _EPOCH) // _MILLISECOND)
        return SaleFile(
            sale_id,
            name,
            *window,
            hold_seconds * 1000,
            offers,
            self._source,
            lines,
            extension_ms=extension_seconds * 1000,
            return_ms=return_days * DAY_MS,
            return_quota=return_quota,
        )

    def _offers(self, tables: object) -> tuple[Offer, ...]:
        if tables is None or tables == []:
            self._fault(("offers",), "a sale has at least one [[offers]]")
            return ()
        if not isinstance(tables, list):
            self._fault(("offers",), f"must be [[offers]] tables, not {_kind(tables)}")
            return ()
        if len(tables) > OFFERS_MAX:
            self._fault(("offers", OFFERS_MAX), f"a sale has at most {OFFERS_MAX} offers, not {len(tables)}")
            return ()
        offers = []
        first_place: dict[str, Place] = {}
        for index, table in enumerate(tables):
            place: Place = ("offers", index)
            checked = self._table(place, table)
            if checked is None:
                continue
            offer = self._offer(index, checked)
            first = first_place.setdefault(offer.sku, place)
            if offer.sku and first != place:
                self._fault((*place, "sku"), f"{_shown(offer.sku)} is already the SKU of line {self._line(first)}")
            offers.append(offer)
        return tuple(offers)

    def _offer(self, index: int, table: dict[str, object]) -> Offer:
        place = ("offers", index)
        self._known_keys(place, table, _OFFER_KEYS)
        return Offer(
            sku=self._matching((*place, "sku"), table, SKU, "1 to 64 printable ASCII characters without spaces"),
            index=index,
            brand=self._text((*place, "brand"), table, BRAND_MAX_CHARACTERS),
            title=self._titles((*place, "title"), table),
            stock=self._integer((*place, "stock"), table, 0, STOCK_MAX_UNITS),
            quota=self._integer((*place, "quota"), table, 0, QUOTA_MAX_UNITS),
            weight_g=self._integer((*place, "weight_g"), table, 0, WEIGHT_MAX_G),
            prices=self._prices((*place, "prices"), table),
        )

    def _titles(self, place: Place, table: dict[str, object]) -> dict[str, str]:
        titles = self._table(place, table.get("title"))
        if titles == {}:
            self._fault(place, "must have a title in at least one language")
        titles = titles or {}
        for language in titles:
            if not LANGUAGE.fullmatch(language):
                self._fault((*place, language), "is no language: use codes such as en, zh or zh-TW")
        return {language: self._text((*place, language), titles, TITLE_MAX_CHARACTERS) for language in titles}

    def _prices(self, place: Place, table: dict[str, object]) -> dict[str, int]:
        prices = self._table(place, table.get("prices"))
        if prices == {}:
            self._fault(place, "must have a price in at least one market")
        return {market: self._price((*place, market), market, price) for market, price in (prices or {}).items()}

    def _price(self, place: Place, code: str, price: object) -> int:
        market = MARKETS.get(code)
        if market is None:
            self._fault(place, "is no market: use an ISO 3166 country code that flashsale/sale/market.py lists")
            return 0
        if not isinstance(price, str):
            self._fault(place, f'must be text such as "899.00", not {_kind(price)}')
            return 0
        try:
            amount_minor = parse_amount(price, market.currency)
        except ValueError as error:
            self._fault(place, str(error))
            return 0
        if amount_minor == 0:
            self._fault(place, "must be above 0")
        return amount_minor

    # One method a type: each takes the place of a key and the table that it is in, and answers a value of the right
    # type even after a fault, so that reading goes on.

    def _table(self, place: Place, value: object) -> dict[str, object] | None:
        if isinstance(value, dict):
            return value
        self._fault(place, "is missing" if value is None else f"must be a table, not {_kind(value)}")
        return None

    def _known_keys(self, place: Place, table: dict[str, object], known: tuple[str, ...]) -> None:
        for key in table.keys() - known:
            # The comparison costs the square of the length; a key longer than this is no slip of the finger.
            near = difflib.get_close_matches(key, known, 1) if len(key) <= 20 else []
            self._fault((*place, key), "is unknown" + (f"; did you mean {near[0]}?" if near else ""))

    def _matching(self, place: Place, table: dict[str, object], pattern: re.Pattern[str], described: str) -> str:
        value = self._string(place, table)
        if value is not None and not pattern.fullmatch(value):
            self._fault(place, f"{_shown(value)} is not {described}")
        return value or ""

    def _text(self, place: Place, table: dict[str, object], longest: int) -> str:
        value = self._string(place, table)
        if value is None:
            return ""
        if not value.strip():
            self._fault(place, "must not be blank")
        elif len(value) > longest:
            self._fault(place, f"must have at most {longest} characters, not {len(value)}")
        # PostgreSQL takes no U+0000; line ends and other controls would break a log line or a label.
        elif any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
            self._fault(place, f"must have no control characters: {_shown(value)}")
        return value

    def _string(self, place: Place, table: dict[str, object]) -> str | None:
        value = table.get(str(place[-1]))
        if isinstance(value, str):
            return value
        self._fault(place, "is missing" if value is None else f"must be text, not {_kind(value)}")
        return None

    def _integer(self, place: Place, table: dict[str, object], least: int, most: int) -> int:
        value = table.get(str(place[-1]))
        if value is None:
            self._fault(place, "is missing")
        elif not isinstance(value, int) or isinstance(value, bool):
            self._fault(place, f"must be a whole number, not {_kind(value)}")
        elif not least <= value <= most:
            self._fault(place, f"must be {least} to {most}, not {_shown(value)}")
        else:
            return value
        return least

    def _boolean(self, place: Place, table: dict[str, object]) -> bool:
        value = table[place[-1]]  # type: ignore[index]  # a key of a table is text
        if isinstance(value, bool):
            return value
        self._fault(place, f"must be true or false, not {_kind(value)}")
        return False

    def _time(self, place: Place, table: dict[str, object]) -> datetime:
        value = table.get(str(place[-1]))
        if value is None:
            self._fault(place, "is missing")
        elif not isinstance(value, datetime) or value.tzinfo is None:
            found = "no offset is there" if isinstance(value, datetime) else f"not {_kind(value)}"
            self._fault(place, f"must be a date and time with its offset, such as 2026-11-10T16:00:00Z; {found}")
        elif not EARLIEST < value < LATEST:
            self._fault(place, f"must be between {EARLIEST.year} and {LATEST.year}")
        else:
            return value
        return EARLIEST

    def _fault(self, place: Place, message: str) -> None:
        self._faults.append(Fault(self._source, self._line(place), _field(place), message))

    def _line(self, place: Place) -> int:
        while place and place not in self._lines:
            place = place[:-1]
        return self._lines.get(place, 1)


def _field(place: Place) -> str:
    """A place as people write it: offers[3].prices.SG."""
    written = ""
    for part in place:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            written += ("." if written else "") + (part if re.fullmatch(r"[\w-]{1,64}", part) else _shown(part))
    return written


def _shown(value: str | int) -> str:
    """A value in a message: short, on one line, whatever the file holds."""
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else f"a number of {value.bit_length()} bits"
    return ascii(value) if len(value) <= 64 else f"{value[:64]!a}..."


_KINDS: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number with a point"),
    (dict, "a table"),
    (list, "a list"),
)


def _kind(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")
