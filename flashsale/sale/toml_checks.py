"""Values of a file that people write, checked: each fault with the file's name, the line and the field.

One method a type: each takes the place of a key and the table that it is in, and answers a value of the right type even
after a fault, so that reading goes on. Strict: a date has an offset, `true` is no number.
"""

import difflib
import re
import unicodedata
from datetime import UTC, datetime
from typing import NamedTuple

from flashsale.sale.toml_lines import Place

# A day in seconds, milliseconds or microseconds put in the wrong place lands far outside these.
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)


class Fault(NamedTuple):
    """One fault: the file's name, the line (from 1), the field (`offers[3].prices.SG`, or "") and what is wrong."""

    source: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (f"{self.source}:{self.line}", self.field, self.message) if part)


class Checks:
    """What tomllib read, value by value. `faults` collects what is wrong, `lines` says where things stand."""

    def __init__(self, source: str, lines: dict[Place, int]) -> None:
        self.source, self.lines = source, lines
        self.faults: list[Fault] = []

    def table(self, place: Place, value: object) -> dict[str, object] | None:
        if isinstance(value, dict):
            return value
        self.fault(place, "is missing" if value is None else f"must be a table, not {kind_of(value)}")
        return None

    def known_keys(self, place: Place, table: dict[str, object], known: tuple[str, ...]) -> None:
        for key in table.keys() - known:
            # The comparison costs the square of the length; a key longer than this is no slip of the finger.
            near = difflib.get_close_matches(key, known, 1) if len(key) <= 20 else []
            self.fault((*place, key), "is unknown" + (f"; did you mean {near[0]}?" if near else ""))

    def matching(self, place: Place, table: dict[str, object], pattern: re.Pattern[str], described: str) -> str:
        value = self.string(place, table)
        if value is not None and not pattern.fullmatch(value):
            self.fault(place, f"{shown(value)} is not {described}")
        return value or ""

    def text(self, place: Place, table: dict[str, object], longest: int) -> str:
        value = self.string(place, table)
        if value is None:
            return ""
        if not value.strip():
            self.fault(place, "must not be blank")
        elif len(value) > longest:
            self.fault(place, f"must have at most {longest} characters, not {len(value)}")
        # PostgreSQL takes no U+0000; line ends and other controls would break a log line or a label.
        elif any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
            self.fault(place, f"must have no control characters: {shown(value)}")
        return value

    def string(self, place: Place, table: dict[str, object]) -> str | None:
        value = table.get(str(place[-1]))
        if isinstance(value, str):
            return value
        self.fault(place, "is missing" if value is None else f"must be text, not {kind_of(value)}")
        return None

    def integer(self, place: Place, table: dict[str, object], least: int, most: int) -> int:
        value = table.get(str(place[-1]))
        if value is None:
            self.fault(place, "is missing")
        elif not isinstance(value, int) or isinstance(value, bool):
            self.fault(place, f"must be a whole number, not {kind_of(value)}")
        elif not least <= value <= most:
            self.fault(place, f"must be {least} to {most}, not {shown(value)}")
        else:
            return value
        return least

    def boolean(self, place: Place, table: dict[str, object]) -> bool:
        value = table[place[-1]]  # type: ignore[index]  # a key of a table is text
        if isinstance(value, bool):
            return value
        self.fault(place, f"must be true or false, not {kind_of(value)}")
        return False

    def time(self, place: Place, table: dict[str, object]) -> datetime:
        value = table.get(str(place[-1]))
        if value is None:
            self.fault(place, "is missing")
        elif not isinstance(value, datetime) or value.tzinfo is None:
            found = "no offset is there" if isinstance(value, datetime) else f"not {kind_of(value)}"
            self.fault(place, f"must be a date and time with its offset, such as 2026-11-10T16:00:00Z; {found}")
        elif not EARLIEST < value < LATEST:
            self.fault(place, f"must be between {EARLIEST.year} and {LATEST.year}")
        else:
            return value
        return EARLIEST

    def fault(self, place: Place, message: str) -> None:
        self.faults.append(Fault(self.source, self.line(place), field_of(place), message))

    def line(self, place: Place) -> int:
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)


def field_of(place: Place) -> str:
    """A place as people write it: offers[3].prices.SG."""
    written = ""
    for part in place:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            written += ("." if written else "") + (part if re.fullmatch(r"[\w-]{1,64}", part) else shown(part))
    return written


def shown(value: str | int) -> str:
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


def kind_of(value: object) -> str:
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "a date or time")
