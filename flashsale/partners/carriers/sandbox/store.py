"""What the sandbox knows of its parcels, in SQLite: nothing is answered before it is in the file, so that a sandbox
that was killed goes on where it was. A parcel's step, its event and the event's delivery are one transaction.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from flashsale.partners.carriers.sandbox.faults import Faults
from flashsale.sale.tracking import Code

WAY = (Code.PICKED_UP, Code.IN_TRANSIT, Code.CUSTOMS, Code.OUT_FOR_DELIVERY, Code.DELIVERED)
"""How a parcel goes where nothing happens to it."""
BOOKED, CANCELLED = "booked", "cancelled"
ENDS = (CANCELLED, Code.DELIVERED, Code.FAILED, Code.RETURNED)
RETRY_FIRST_MS, RETRY_MOST_MS = 250, 30_000
_DETAILS = {
    Code.PICKED_UP: "Picked up from the sender",
    Code.IN_TRANSIT: "Left the origin country",
    Code.CUSTOMS: "Cleared by customs",
    Code.OUT_FOR_DELIVERY: "Out for delivery",
    Code.DELIVERED: "Handed to the recipient",
    Code.FAILED: "Nobody took it in",
    Code.RETURNED: "Back with the sender",
}
_WEIGHTS = (8, 6, 4, 2, 3, 5, 9, 7)  # of the check digit, S10
_SCHEMA = """
CREATE TABLE IF NOT EXISTS parcel (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    reference TEXT    NOT NULL UNIQUE,
    waybill   TEXT    UNIQUE,
    carrier   TEXT    NOT NULL,
    country   TEXT    NOT NULL,
    content   BLOB    NOT NULL,                 -- hash of what was booked
    status    TEXT    NOT NULL,                 -- booked, cancelled, or the code of its last event
    next_ms   INTEGER                           -- when it moves by itself
);
CREATE INDEX IF NOT EXISTS parcel_next ON parcel (next_ms) WHERE next_ms IS NOT NULL;
CREATE TABLE IF NOT EXISTS event (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    id        TEXT    NOT NULL UNIQUE,
    parcel    INTEGER NOT NULL,
    body      BLOB    NOT NULL
);
CREATE INDEX IF NOT EXISTS event_parcel ON event (parcel, number);
CREATE TABLE IF NOT EXISTS delivery (
    number    INTEGER PRIMARY KEY AUTOINCREMENT,
    due_ms    INTEGER NOT NULL,
    tries     INTEGER NOT NULL DEFAULT 0,
    event     TEXT    NOT NULL,
    carrier   TEXT    NOT NULL,
    body      BLOB    NOT NULL
);
CREATE INDEX IF NOT EXISTS delivery_due ON delivery (due_ms, number);
"""


class Booked(NamedTuple):
    """A parcel as it was booked; `was_there`: before this."""

    waybill: str
    carrier: str
    status: str
    was_there: bool


class Delivery(NamedTuple):
    """A webhook to be sent."""

    number: int
    tries: int
    event: str
    carrier: str
    body: bytes


class Refusal(Exception):
    """What the carrier will not do: the answer's status, and a code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def waybill_of(carrier: str, number: int) -> str:
    """A number after UPU S10: two letters of the carrier's, eight digits, their check digit, and the country."""
    letters = (carrier.upper().replace("-", "") + "XX")[:2]
    digits = f"{number % 10**8:08d}"
    rest = 11 - sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=True)) % 11
    return f"{letters}{digits}{ {10: 0, 11: 5}.get(rest, rest) }CN"


class Store:
    """The parcels. Its calls take well under a millisecond, and are made on the event loop. `None` for the file: it
    remembers nothing over a restart. `step_ms`: parcels move by themselves, one step after so long; 0: on command."""

    def __init__(self, path: Path | None, *, step_ms: int = 0, sends: bool = True) -> None:
        self._sql = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")  # whole after a kill; only a power cut may lose the last
        self._sql.executescript(_SCHEMA)
        self._sends = sends
        self.step_ms = step_ms
        self.faults = Faults()

    def close(self) -> None:
        self._sql.close()

    # --- what the API asks ---

    def book(self, reference: str, carrier: str, country: str, body: bytes) -> Booked:
        """The parcel under that reference. Raises Refusal where it is another one."""
        content = hashlib.blake2s(body).digest()
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            known = self._sql.execute(
                "SELECT waybill, carrier, status, content FROM parcel WHERE reference = ?", (reference,)
            ).fetchone()
            if known is not None:
                if known[3] != content:
                    raise Refusal(409, "reference-used", f"another parcel was booked under {reference}")
                return Booked(known[0], known[1], known[2], True)
            next_ms = now_ms() + self.step_ms if self.step_ms else None
            number = self._sql.execute(
                "INSERT INTO parcel (reference, carrier, country, content, status, next_ms) VALUES (?, ?, ?, ?, ?, ?)",
                (reference, carrier, country, content, BOOKED, next_ms),
            ).lastrowid
            waybill = waybill_of(carrier, number or 0)
            self._sql.execute("UPDATE parcel SET waybill = ? WHERE number = ?", (waybill, number))
            return Booked(waybill, carrier, BOOKED, False)

    def cancel(self, waybill: str) -> None:
        """Not to be carried. Raises Refusal for one that was picked up, or is not known."""
        number, _, status, _ = self._find(waybill)
        if status not in (BOOKED, CANCELLED):
            raise Refusal(409, "picked-up", f"the parcel is {status}")
        self._sql.execute("UPDATE parcel SET status = ?, next_ms = NULL WHERE number = ?", (CANCELLED, number))

    def read(self, waybill: str) -> dict[str, Any]:
        """The parcel and its events. Raises Refusal."""
        number, carrier, status, _ = self._find(waybill)
        rows = self._sql.execute("SELECT body FROM event WHERE parcel = ? ORDER BY number", (number,))
        events = [orjson.loads(row[0]) for row in rows]
        (reference,) = self._sql.execute("SELECT reference FROM parcel WHERE number = ?", (number,)).fetchone()
        return {"waybill": waybill, "reference": reference, "carrier": carrier, "status": status, "events": events}

    def all(self, limit: int) -> list[dict[str, Any]]:
        """The newest parcels."""
        rows = self._sql.execute(
            "SELECT reference, waybill, carrier, country, status FROM parcel ORDER BY number DESC LIMIT ?", (limit,)
        )
        return [dict(zip(("reference", "waybill", "carrier", "country", "status"), row, strict=True)) for row in rows]

    def counts(self) -> dict[str, int]:
        """How many parcels, events and deliveries to be made there are."""
        return {
            name: self._sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  our own tables
            for name, table in (("parcels", "parcel"), ("events", "event"), ("deliveries", "delivery"))
        }

    # --- how parcels move ---

    def advance(self, waybill: str) -> str:
        """One step on; its status. Raises Refusal for a parcel that is at its end."""
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            number, carrier, status, country = self._find(waybill)
            self._check_on_its_way(status)
            return self._step(number, waybill, carrier, country, [_following(status)])

    def finish(self, waybill: str, end: Code) -> str:
        """Delivered by all the steps that are left; or failed, once it was picked up; or returned after it failed."""
        with self._sql:
            self._sql.execute("BEGIN IMMEDIATE")
            number, carrier, status, country = self._find(waybill)
            steps: Sequence[Code]
            if end is Code.RETURNED:
                if status != Code.FAILED:
                    raise Refusal(409, "not-failed", f"the parcel is {status}")
                steps = [end]
            else:
                self._check_on_its_way(status)
                left = WAY[0 if status == BOOKED else WAY.index(Code(status)) + 1 :]
                steps = left if end is Code.DELIVERED else [*left[: 1 if status == BOOKED else 0], end]
            return self._step(number, waybill, carrier, country, steps)

    def move_due(self, most: int) -> int:
        """Moves the parcels whose time has come; how many."""
        rows = self._sql.execute(
            "SELECT waybill FROM parcel WHERE next_ms <= ? ORDER BY next_ms LIMIT ?", (now_ms(), most)
        ).fetchall()
        for (waybill,) in rows:
            self.advance(waybill)
        return len(rows)

    def _step(self, number: int, waybill: str, carrier: str, country: str, steps: Sequence[Code]) -> str:
        for code in steps:
            at_ms = now_ms()
            told = self._sql.execute("SELECT count(*) FROM event WHERE parcel = ?", (number,)).fetchone()[0]
            event_id = f"te_{waybill}_{told + 1}"
            body = orjson.dumps(
                {
                    "id": event_id,
                    "waybill": waybill,
                    "code": code,
                    "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(at_ms // 1000))}.{at_ms % 1000:03d}Z",
                    "detail": _DETAILS[code],
                    "country": "CN" if code in (Code.PICKED_UP, Code.RETURNED) else country,
                }
            )
            self._sql.execute("INSERT INTO event (id, parcel, body) VALUES (?, ?, ?)", (event_id, number, body))
            for pause_ms in self.faults.deliveries() if self._sends else ():
                self._sql.execute(
                    "INSERT INTO delivery (due_ms, event, carrier, body) VALUES (?, ?, ?, ?)",
                    (at_ms + pause_ms, event_id, carrier, body),
                )
        status = steps[-1]
        next_ms = now_ms() + self.step_ms if self.step_ms and status not in ENDS else None
        self._sql.execute("UPDATE parcel SET status = ?, next_ms = ? WHERE number = ?", (status, next_ms, number))
        return str(status)

    def _find(self, waybill: str) -> tuple[int, str, str, str]:
        row = self._sql.execute(
            "SELECT number, carrier, status, country FROM parcel WHERE waybill = ?", (waybill,)
        ).fetchone()
        if row is None:
            raise Refusal(404, "unknown-waybill", "there is no such parcel")
        return row[0], row[1], row[2], row[3]

    def _check_on_its_way(self, status: str) -> None:
        if status in ENDS:
            raise Refusal(409, "ended", f"the parcel is {status}")

    # --- what is sent ---

    def due(self, most: int) -> list[Delivery]:
        """Webhooks to be sent now; each is due again if it is not said to be delivered."""
        rows = self._sql.execute(
            "SELECT number, tries, event, carrier, body FROM delivery WHERE due_ms <= ? ORDER BY due_ms, number"
            " LIMIT ?",
            (now_ms(), most),
        ).fetchall()
        return [Delivery(*row) for row in rows]

    def delivered(self, delivery: Delivery) -> None:
        """It was taken."""
        self._sql.execute("DELETE FROM delivery WHERE number = ?", (delivery.number,))

    def deliver_again(self, delivery: Delivery) -> None:
        """It was not: later, and ever later."""
        pause_ms = min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** min(delivery.tries, 20))
        self._sql.execute(
            "UPDATE delivery SET due_ms = ?, tries = tries + 1 WHERE number = ?",
            (now_ms() + pause_ms, delivery.number),
        )


def _following(status: str) -> Code:
    return WAY[0] if status == BOOKED else WAY[WAY.index(Code(status)) + 1]
