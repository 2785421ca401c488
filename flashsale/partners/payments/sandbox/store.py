"""What the sandbox knows, in SQLite: it survives `kill -9` whole, for nothing is answered before it is on disk.

One thread owns the file. Requests that wait while a commit is under way share the next one, so that the disk's
latency is paid by a batch (WAL, synchronous FULL). An object's change, its event and the event's delivery are one
transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from flashsale.partners.payments.sandbox.faults import Faults

BATCH_MAX = 256  # requests in one transaction
API_VERSION = "2026-10-28.endive"
T = TypeVar("T")
Object = dict[str, Any]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS object (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of lists
    id      TEXT    NOT NULL UNIQUE,
    kind    TEXT    NOT NULL,
    created INTEGER NOT NULL,
    link    TEXT,                               -- the intent it belongs to; of an event: its type
    body    BLOB    NOT NULL
);
CREATE INDEX IF NOT EXISTS object_kind ON object (kind, number);
CREATE INDEX IF NOT EXISTS object_link ON object (link, kind, number);
CREATE TABLE IF NOT EXISTS idempotency (
    key     TEXT    PRIMARY KEY,
    request BLOB    NOT NULL,                   -- hash of method, path and parameters
    status  INTEGER NOT NULL,
    body    BLOB    NOT NULL,
    created INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_created ON idempotency (created);
CREATE TABLE IF NOT EXISTS delivery (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    due_ms  INTEGER NOT NULL,
    tries   INTEGER NOT NULL DEFAULT 0,
    body    BLOB    NOT NULL
);
CREATE INDEX IF NOT EXISTS delivery_due ON delivery (due_ms, number);
CREATE TABLE IF NOT EXISTS later (
    due_ms  INTEGER NOT NULL,                   -- by the sandbox's own clock
    id      TEXT    NOT NULL
);
CREATE INDEX IF NOT EXISTS later_due ON later (due_ms);
CREATE TABLE IF NOT EXISTS knob (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


class Delivery(NamedTuple):
    """A webhook to be sent."""

    number: int
    tries: int
    body: bytes


class Change:
    """What a request may read and write inside its transaction. Lives in the store's thread."""

    def __init__(self, connection: sqlite3.Connection, enabled: frozenset[str]) -> None:
        self._sql = connection
        self._enabled = enabled  # types of events that are delivered; empty: no endpoint
        self.advance_ms = 0
        self.faults = Faults()
        self.request_key: str | None = None  # the Idempotency-Key of the request that makes this change
        self.has_mail = False  # this batch wrote webhooks

    def now_ms(self) -> int:
        """The sandbox's clock: the real one, and what POST /sandbox/clock advanced it by."""
        return int(time.time() * 1000) + self.advance_ms

    def now_s(self) -> int:
        return self.now_ms() // 1000

    def find(self, object_id: str) -> Object | None:
        row = self._sql.execute("SELECT body FROM object WHERE id = ?", (object_id,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def get(self, object_id: str) -> Object:
        """An object that is there, since another names it. Raises KeyError if it is not."""
        found = self.find(object_id)
        if found is None:
            raise KeyError(object_id)
        return found

    def linked(self, kind: str, link: str) -> list[Object]:
        """The objects of a kind that belong to an intent, newest first."""
        rows = self._sql.execute(
            "SELECT body FROM object WHERE link = ? AND kind = ? ORDER BY number DESC LIMIT 1000", (link, kind)
        )
        return [orjson.loads(body) for (body,) in rows]

    def insert(self, made: Object, link: str | None = None) -> None:
        self._sql.execute(
            "INSERT INTO object (id, kind, created, link, body) VALUES (?, ?, ?, ?, ?)",
            (made["id"], made["object"], made["created"], link, orjson.dumps(made)),
        )

    def update(self, changed: Object) -> None:
        self._sql.execute("UPDATE object SET body = ? WHERE id = ?", (orjson.dumps(changed), changed["id"]))

    def page(
        self,
        kind: str,
        limit: int,
        *,
        link: str | None = None,
        created: Iterable[tuple[str, int]] = (),
        starting_after: str | None = None,
        ending_before: str | None = None,
    ) -> tuple[list[Object], bool]:
        """A page of a list, newest first, and whether there is more. `created`: SQL comparisons, each with a time."""
        where = ["kind = ?"]
        values: list[Any] = [kind]
        if link is not None:
            where.append("link = ?")
            values.append(link)
        for comparison, moment in created:
            where.append(f"created {comparison} ?")
            values.append(moment)
        backwards = ending_before is not None
        for cursor, comparison in ((starting_after, "<"), (ending_before, ">")):
            if cursor is not None:
                where.append(f"number {comparison} (SELECT number FROM object WHERE id = ?)")  # noqa: S608 - < or >
                values.append(cursor)
        rows = self._sql.execute(
            f"SELECT body FROM object WHERE {' AND '.join(where)}"  # noqa: S608 - words of ours alone
            f" ORDER BY number {'ASC' if backwards else 'DESC'} LIMIT ?",
            (*values, limit + 1),
        ).fetchall()
        found = [orjson.loads(body) for (body,) in rows[:limit]]
        return (found[::-1] if backwards else found), len(rows) > limit

    def event(self, event_type: str, about: Object) -> None:
        """Record that something happened, and have it delivered as the faults will have it."""
        made = {
            "id": new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now_s(),
            "data": {"object": about},
            "livemode": False,
            "pending_webhooks": 1 if event_type in self._enabled else 0,
            "request": {"id": None, "idempotency_key": self.request_key},
            "type": event_type,
        }
        self.insert(made, link=event_type)
        if event_type in self._enabled:
            body = orjson.dumps(made, option=orjson.OPT_INDENT_2)
            now_ms = int(time.time() * 1000)
            for after_ms in self.faults.deliveries():
                self._sql.execute("INSERT INTO delivery (due_ms, body) VALUES (?, ?)", (now_ms + after_ms, body))
                self.has_mail = True

    def later(self, after_ms: int, object_id: str) -> None:
        """Have an object looked at again after a time by the sandbox's clock."""
        self._sql.execute("INSERT INTO later (due_ms, id) VALUES (?, ?)", (self.now_ms() + after_ms, object_id))

    def take_due(self, most: int) -> list[str]:
        """Objects whose time has come; they are not told again."""
        rows = self._sql.execute(
            "DELETE FROM later WHERE rowid IN (SELECT rowid FROM later WHERE due_ms <= ? LIMIT ?) RETURNING id",
            (self.now_ms(), most),
        ).fetchall()
        return [object_id for (object_id,) in rows]

    def kept_answer(self, key: str, since_s: int) -> tuple[bytes, int, bytes] | None:
        """(request's hash, status, body) kept under an Idempotency-Key that has not lapsed."""
        row = self._sql.execute(
            "SELECT request, status, body FROM idempotency WHERE key = ? AND created > ?", (key, since_s)
        ).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def keep_answer(self, key: str, request: bytes, status: int, body: bytes) -> None:
        self._sql.execute(
            "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)", (key, request, status, body, self.now_s())
        )

    def forget_keys(self, until_s: int, most: int) -> None:
        """Drop answers whose keys have lapsed."""
        self._sql.execute(
            "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE created <= ? LIMIT ?)",
            (until_s, most),
        )

    def claim(self, most: int, lease_ms: int) -> list[Delivery]:
        """Webhooks that are due, the oldest first. Not told again within the lease."""
        now_ms = int(time.time() * 1000)
        rows = self._sql.execute(
            "SELECT number, tries, body FROM delivery WHERE due_ms <= ? ORDER BY due_ms, number LIMIT ?", (now_ms, most)
        ).fetchall()
        self._sql.executemany(
            "UPDATE delivery SET due_ms = ? WHERE number = ?", ((now_ms + lease_ms, row[0]) for row in rows)
        )
        return [Delivery(*row) for row in rows]

    def next_due_ms(self) -> int | None:
        row = self._sql.execute("SELECT min(due_ms) FROM delivery").fetchone()
        return None if row is None else row[0]

    def delivered(self, numbers: Iterable[int]) -> None:
        self._sql.executemany("DELETE FROM delivery WHERE number = ?", ((number,) for number in numbers))

    def deliver_again(self, postponed: Iterable[tuple[int, int]]) -> None:
        """(number, milliseconds from now) of webhooks that were not taken."""
        now_ms = int(time.time() * 1000)
        self._sql.executemany(
            "UPDATE delivery SET tries = tries + 1, due_ms = ? WHERE number = ?",
            ((now_ms + after_ms, number) for number, after_ms in postponed),
        )

    def release_claims(self) -> None:
        """After a start: what the process before us had claimed, or put off, is due now."""
        now_ms = int(time.time() * 1000)
        self._sql.execute("UPDATE delivery SET due_ms = ? WHERE due_ms > ?", (now_ms, now_ms))

    def count(self, table: str) -> int:
        if table not in ("object", "delivery", "idempotency"):
            raise ValueError(table)
        return int(self._sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - one of three words

    def knob(self, name: str) -> Any:
        row = self._sql.execute("SELECT value FROM knob WHERE name = ?", (name,)).fetchone()
        return None if row is None else orjson.loads(row[0])

    def set_knob(self, name: str, value: Any) -> None:
        self._sql.execute("INSERT OR REPLACE INTO knob VALUES (?, ?)", (name, orjson.dumps(value)))

    def set_faults(self, faults: Faults) -> None:
        """What goes wrong from now on; kept, so that a restart goes on with it."""
        self.faults = faults
        self.set_knob("faults", faults.as_json())

    def advance(self, by_ms: int) -> None:
        self.advance_ms += by_ms
        self.set_knob("advance_ms", self.advance_ms)

    def load(self) -> None:
        """Once, at the start: clock and faults as they were. The draws go on elsewhere in their sequence."""
        self.advance_ms = self.knob("advance_ms") or 0
        kept = self.knob("faults")
        if kept is not None:
            self.faults = Faults.of(kept, salt=self.count("object"))


def new_id(prefix: str) -> str:
    """An id as Stripe's look."""
    return f"{prefix}_{secrets.token_hex(12)}"


class Store:
    """The file and its thread. Make it in the loop that uses it."""

    def __init__(self, path: Path, enabled: frozenset[str]) -> None:
        self._path = path
        self._enabled = enabled
        self._asked: queue.SimpleQueue[tuple[Callable[[Change], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()
        self.on_mail: Callable[[], None] = lambda: None  # called in the loop after a batch that wrote webhooks

    async def start(self) -> None:
        """Open the file and make it ready. Raises sqlite3.Error where it can't be."""
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(opened,), name="sandbox-store", daemon=True)
        self._thread.start()
        await opened

    async def do(self, work: Callable[[Change], T]) -> T:
        """Run `work` in a transaction and answer what it returns, once that is on disk. What it raises undoes it."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._asked.put((work, done))
        return await done

    async def close(self) -> None:
        self._asked.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 0.5)

    def _run(self, opened: asyncio.Future[None]) -> None:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            change = Change(connection, self._enabled)
            change.load()
            change.release_claims()
        except Exception as fault:
            self._loop.call_soon_threadsafe(opened.set_exception, fault)
            return
        self._loop.call_soon_threadsafe(opened.set_result, None)
        with contextlib.closing(connection):
            while (first := self._asked.get()) is not None:
                batch = [first]
                last = False
                while len(batch) < BATCH_MAX and not last:
                    try:
                        item = self._asked.get_nowait()
                    except queue.Empty:
                        break
                    if item is None:
                        last = True
                    else:
                        batch.append(item)
                self._commit(connection, change, batch)
                if last:
                    return

    def _commit(
        self,
        connection: sqlite3.Connection,
        change: Change,
        batch: list[tuple[Callable[[Change], Any], asyncio.Future[Any]]],
    ) -> None:
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for work, done in batch:
                connection.execute("SAVEPOINT one")
                change.request_key = None
                try:
                    outcomes.append((done, work(change), None))
                except Exception as fault:
                    connection.execute("ROLLBACK TO one")
                    outcomes.append((done, None, fault))
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except sqlite3.Error as fault:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            outcomes = [(done, None, fault) for _, done in batch]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._resolve, outcomes, change.has_mail)
        change.has_mail = False

    def _resolve(self, outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]], has_mail: bool) -> None:
        for done, result, fault in outcomes:
            if done.done():
                continue
            if fault is None:
                done.set_result(result)
            else:
                done.set_exception(fault)
        if has_mail:
            self.on_mail()
