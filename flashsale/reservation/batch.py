"""A batch of orders as `reserve.lua` takes it: its arguments behind epoch and version, as the script's head documents.

All orders of a batch belong to one sale and are priced alike (the same `PricedSale`). What only orders across borders,
of channels or of agents have costs an order without it one look.
"""

from __future__ import annotations

import struct

from flashsale.reservation import keys
from flashsale.reservation.limits import identity_field, lane_field
from flashsale.sale.priced import Order

NO_LIMIT = 2**47
_IMPORT = struct.Struct(">HH6s")


def script_keys(partition: int, sale_id: str) -> list[str]:
    """The script's KEYS."""
    of_sale = (keys.state, keys.stock, keys.quota, keys.holds)
    return [
        keys.partition(partition),
        *(name(partition, sale_id) for name in of_sale),
        keys.journal(partition),
        keys.returns(partition, sale_id),
        keys.limits(partition),
        keys.grants(partition),
    ]


def arguments(orders: list[Order]) -> list[bytes]:
    """ARGV 3 to 18. Raises struct.error or OverflowError for a number out of range."""
    skus: list[int] = []
    quantities: list[int] = []
    quotas: list[int] = []
    fields: list[bytes] = []
    beyond = False
    for order in orders:
        skus += order.skus
        quantities += order.quantities
        quotas += order.quotas
        if order.fields:
            fields += order.fields
        if order.beyond is not None:
            beyond = True
    count = len(orders)
    pack_lines = struct.Struct(f">{len(skus)}H").pack
    records = [order.record for order in orders]
    return [
        b"".join([order.digest for order in orders]),
        b"".join([order.head for order in orders]),
        b"".join(fields),
        pack_lines(*skus),
        pack_lines(*quantities),
        pack_lines(*quotas) if any(quotas) else b"",
        b"" if len(skus) == count else bytes([len(order.skus) for order in orders]),
        b"".join([_mark(number, order.marks) for number, order in enumerate(orders, 1) if order.marks]),
        struct.pack(f">{count}I", *map(len, records)),
        b"".join(records),
        orders[0].sale.span,
        *(_beyond(orders) if beyond else _NOTHING_BEYOND),
    ]


_NOTHING_BEYOND = (b"",) * 5


def _mark(number: int, marks: int) -> bytes:
    return struct.pack(">HB", number, marks)


def _beyond(orders: list[Order]) -> tuple[bytes, ...]:
    """ARGV 14 to 18: limits, pools and agents."""
    counters: dict[tuple[int, int, int] | tuple[bytes, int, int], int] = {}  # whose, when, limit -> number, from 1
    parcels = bytearray()
    imports = []
    pools = bytearray()
    agents = []
    usual, usual_parcel = None, 0  # in a crowd nearly all orders take the same
    for number, order in enumerate(orders, 1):
        beyond = order.beyond
        if beyond is usual and beyond is not None:
            parcels.append(usual_parcel)
            pools += bytes(len(order.skus))
            continue
        if beyond is None:
            parcels.append(0)
            pools += bytes(len(order.skus))
            continue
        if beyond.parcel is not None:
            parcels.append(counters.setdefault(beyond.parcel, len(counters) + 1))
        else:
            parcels.append(0)
        if beyond.imported is not None:
            identity, year, limit, amount = beyond.imported
            counter = counters.setdefault((identity, year, limit), len(counters) + 1)
            imports.append(_IMPORT.pack(number, counter, amount.to_bytes(6, "big")))
        pools += beyond.pools or bytes(len(order.skus))
        if beyond.imported is None and not beyond.pools and not beyond.grant:
            usual, usual_parcel = beyond, parcels[-1]
        if beyond.grant:
            agents.append(number.to_bytes(2, "big") + beyond.grant)
    return (
        b"".join([_counter(*counter) for counter in counters]),
        bytes(parcels) if any(parcels) else b"",
        b"".join(imports),
        bytes(pools) if any(pools) else b"",
        b"".join(agents),
    )


def _counter(whose: int | bytes, when: int, limit: int) -> bytes:
    """A field of the limits and its limit; a lane's capacity of 0 is none."""
    if isinstance(whose, bytes):
        return identity_field(whose, when) + limit.to_bytes(6, "big")
    return lane_field(whose, when) + (limit or NO_LIMIT).to_bytes(6, "big")
