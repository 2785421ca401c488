"""Orders as the channel that sent them sees them to the door: lists by time, parcels packed, shipped and delivered.

What becomes of the order itself is `life`'s; a package says what lies in the parcel and under which number it travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashsale.errors import Refused
from flashsale.ledger import life, orders
from flashsale.ledger.life.change import units_of
from flashsale.ledger.life.steps import Lines, units_by_line
from flashsale.ledger.orders import OrderRow
from flashsale.ledger.pool import Connection
from flashsale.sale.lifecycle import Status

GONE = frozenset({Status.SHIPPED, Status.DELIVERED, Status.UNDELIVERABLE})
"""Statuses of orders whose parcel has left."""
_NUMBER_DIGITS = 12


@dataclass(frozen=True, slots=True)
class PackageRow:
    """A parcel. `skus` are offer indices, `quantities` units of each."""

    number: int
    order_id: str
    channel: str
    skus: list[int]
    quantities: list[int]
    packed_ms: int

    @property
    def id(self) -> str:
        return f"pk-{self.order_id}"

    @property
    def tracking(self) -> str:
        return tracking_of(self.number)


_COLUMNS = ", ".join(PackageRow.__dataclass_fields__)


def tracking_of(number: int) -> str:
    """A package's tracking number: FS, its number in twelve digits, and a check digit after Luhn (ISO/IEC 7812-1), so
    that a digit mistyped is noticed."""
    digits = f"{number:0{_NUMBER_DIGITS}d}"
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return f"FS{digits}{-total % 10}"


async def packages_of(connection: Connection, order_ids: Sequence[str]) -> dict[str, PackageRow]:
    """The packages of these orders, by order; those that were not packed are left out."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM package WHERE order_id = ANY ($1::text[])",  # noqa: S608
        list(order_ids),
    )
    return {row["order_id"]: PackageRow(*row) for row in rows}


async def package_of(connection: Connection, order_id: str) -> PackageRow:
    """The order's package. Raises Refused("not-packed")."""
    found = await packages_of(connection, [order_id])
    if order_id not in found:
        raise Refused("not-packed")
    return found[order_id]


async def pack(connection: Connection, order_id: str, lines: Lines | None, now_ms: int) -> PackageRow:
    """Packs units of a paid order (None: all that is left); the rest will not ship. Once: raises Refused already-packed
    with the package, not-found, not-shippable, invalid-request."""
    order = await orders.lock(connection, order_id)
    if order is None:
        raise Refused("not-found", "There is no such order.")
    packed = (await packages_of(connection, [order_id])).get(order_id)
    if packed is not None:
        raise Refused("already-packed", package=packed.id, tracking=packed.tracking)
    if order.status != Status.PAID:
        raise Refused("not-shippable", f"The order is {order.status}.", order_status=order.status)
    left = _left(order)
    units = left if lines is None else units_by_line(order, lines, left, "not-shippable")
    within = [(sku, count) for sku, count in zip(order.skus, units, strict=True) if count]
    row = await connection.fetchrow(
        "INSERT INTO package (order_id, channel, skus, quantities, packed_ms) VALUES ($1, $2, $3, $4, $5)"  # noqa: S608
        f" RETURNING {_COLUMNS}",
        *(order_id, order.channel, [sku for sku, _ in within], [count for _, count in within], now_ms),
    )
    assert row is not None  # noqa: S101  an INSERT that returns
    return PackageRow(*row)


async def hand_over(connection: Connection, order_id: str, now_ms: int) -> OrderRow:
    """The parcel is ready to ship: what lies in it ships, what does not is cancelled. A parcel that has left already
    changes nothing. Raises Refused: not-found, not-packed, not-shippable."""
    package = await package_of(connection, order_id)
    order = await orders.find(connection, order_id)
    if order is None:
        raise Refused("not-found", "There is no such order.")
    if order.status in GONE:
        return order
    packed = dict(zip(package.skus, package.quantities, strict=True))
    # Units that were cancelled after they had been packed are taken out again.
    still = [(sku, min(packed.get(sku, 0), left)) for sku, left in zip(order.skus, _left(order), strict=True)]
    lines = [(sku, units) for sku, units in still if units]
    if not lines:
        raise Refused("not-shippable", "Nothing of what was packed is left.", order_status=order.status)
    # Under a key, since another hand-over may come between: then this one changes nothing.
    return await life.ship(connection, order_id, lines, now_ms, key=package.id)


async def arrived(connection: Connection, order_id: str, delivered: bool, now_ms: int) -> OrderRow:
    """What became of the parcel. Raises Refused: not-found, not-packed, not-shippable."""
    await package_of(connection, order_id)
    return await life.deliver(connection, order_id, delivered, now_ms)


def _left(order: OrderRow) -> list[int]:
    """Units of each line that were not cancelled."""
    return [a - b for a, b in zip(order.quantities, units_of(order.cancelled, len(order.skus)), strict=True)]
