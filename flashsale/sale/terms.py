"""The terms of an order: what it costs and takes, whoever orders, wherever it goes. Orders that are alike share them.

In a flash sale nearly all orders of a market are alike: one line, the default lane. So the texts of record and answer,
and what the decision needs, are made for the first of them and kept while its prices hold. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

from flashsale.sale.identity import fingerprint
from flashsale.sale.quoting import LaneUnavailable, NotSoldHere
from flashsale.sale.trade.landed import ImportLimit

NULL = "\\N"
"""COPY text's NULL; no column's own text can be this, since a backslash is written twice."""
NO_BORDER = "\t\\N" * 10
NO_LIMIT = "\t\\N" * 3
"""The columns of a record from `shipping` to `promised_by`, and those of an import limit, where there is neither."""
PLAIN = f"\t\\N\tf{NO_BORDER}{NO_LIMIT}\t\\N\n"
"""The columns behind `hold_ms` of an order that crosses no border, draws on no guarantee and has no agent."""


class Beyond(NamedTuple):
    """What an order takes beside units and quota. `parcel`: lane, dispatch day and its capacity (parcels, 0: no
    limit); `imported`: identity, year, its limit and what the order counts, minor units; `pools`: of each line the
    channel whose guarantee it draws on first, 0: none, empty: no line does; `grant`: the field of the agent's grant,
    empty: the shopper orders."""

    parcel: tuple[int, int, int] | None
    imported: tuple[bytes, int, int, int] | None
    pools: bytes
    grant: bytes


class Crossed(NamedTuple):
    """What a border adds. `total` minor units, `lane` its id, `parcel` lane number, dispatch day and capacity;
    `columns` those of the record from `shipping` to `promised_by`, each behind a tab; `json` what the answer says, with
    a comma before. `limit`: that of the buyer's imports, None: there is none; `limit_use` what the order counts,
    `over_limit`: it is more than one order may."""

    total: int
    lane: str
    parcel: tuple[int, int, int]
    columns: str
    json: str
    limit: ImportLimit | None
    limit_use: int
    over_limit: bool


class Lines(NamedTuple):
    """The lines of an order, priced: SKU indices, units, quotas and prices (minor units) of each, the SKU's two bytes
    of each that has a quota, `total` of the goods, `json` the lines of the answer without the brackets, `pools` of each
    the channel whose guarantee it draws on first (0: none), empty where no line does."""

    skus: tuple[int, ...]
    quantities: tuple[int, ...]
    quotas: tuple[int, ...]
    prices: tuple[int, ...]
    limited: tuple[bytes, ...]
    total: int
    json: str
    pools: bytes


class Terms:
    """`record` is the journal record's text between the Idempotency-Key and the address, `asked` what follows the
    address and is asked for, `priced` what follows that, up to `hold_ms`, around the fingerprint. `json` is the
    answer's text behind the order's id, up to `reserved_until`.

    `usual`: nothing counts but units, quota and parcel. Then `beyond` holds for every shopper's order, and `whole` is
    the record's text behind the key to its end, where no address is given.

    `json`, `heads` and `whole` are pairs: of an order that is to be paid, and of one that its channel collected.
    """

    __slots__ = (
        "asked",
        "beyond",
        "border",
        "crossed",
        "currency",
        "heads",
        "json",
        "lines",
        "marks",
        "place",
        "priced",
        "record",
        "refusal",
        "rest",
        "total",
        "usual",
        "version_bytes",
        "whole",
    )

    def __init__(
        self,
        *,
        sale: str,
        market: str,
        channel: str,
        lane: str | None,
        currency: str,
        version: int,
        hold_ms: int,
        lines: Lines,
        crossed: Crossed | None,
        refusal: NotSoldHere | LaneUnavailable | None,
        marks: int,
        nothing_json: str,
        beyond: Beyond | None,
    ) -> None:
        """`lane` as it was asked for; `crossed` and `refusal`: of an order across a border one of them; `marks` say
        why it can't be accepted; `nothing_json` what the answer says of a border that there is none; `beyond`: what a
        usual order takes beside units and quota."""
        self.lines, self.crossed, self.refusal, self.marks, self.currency = lines, crossed, refusal, marks, currency
        self.beyond = beyond
        self.usual = not lines.pools and (crossed is None or crossed.limit is None)
        self.version_bytes = version.to_bytes(3, "big")
        by = lane
        crossing = nothing_json
        if crossed is not None:
            self.total, by, crossing = crossed.total, crossed.lane, crossed.json
        else:
            self.total = lines.total
            if lane is not None and refusal is None:
                # Letters, digits, '.', '_' and '-' alone.
                crossing = nothing_json.replace('"lane":null', f'"lane":"{lane}"', 1)
        # What was asked, not what follows from it: a retry says the same when the default lane is another one.
        self.place = f"{market}\t{channel}\t{lane or NULL}\t"
        self.record = f"\t{market}\t{channel}\t{by or NULL}\t"
        self.asked = f"\t{array(lines.skus)}\t{array(lines.quantities)}"
        self.priced = (
            f"\t{array(lines.prices)}\t{self.total}\t{currency}\t{version}\t\\\\x",
            f"\t{hold_ms}",
        )
        self.border = NO_BORDER if crossed is None else crossed.columns
        self.rest = f"{self.border}{NO_LIMIT}\t\\N\n"
        unpaid, collected = self.mark(NULL), self.mark(NULL, collected=True)
        self.heads = self.head_of(unpaid), self.head_of(collected)
        self.whole = (
            f"{self.columns(NULL, unpaid)}\t\\N\tf{self.rest}",
            f"{self.columns(NULL, collected)}\t\\N\tt{self.rest}",
        )
        said = (
            f'"market":"{market}","channel":"{channel}","lines":[{lines.json}],'
            f'"total":{{"amount":{self.total},"currency":"{currency}"}}{crossing},"reserved_until":"'
        )
        self.json = f'","sale":"{sale}","status":"reserved",{said}', f'","sale":"{sale}","status":"paid",{said}'

    def mark(self, address: str, *, collected: bool = False, identity: bytes | None = None) -> bytes:
        """The fingerprint of an order under these terms to that address (COPY text), by that verified identity."""
        more = ("\tcollected" if collected else "") + (f"\t{identity.hex()}" if identity is not None else "")
        return fingerprint(f"{self.place}{address}{self.asked}{more}".encode())

    def head_of(self, mark: bytes) -> bytes:
        """How the hold of an order with that fingerprint begins."""
        return b"h" + mark + self.version_bytes

    def columns(self, address: str, mark: bytes) -> str:
        """The record's text from the market to `hold_ms`, with a tab before."""
        before, behind = self.priced
        return f"{self.record}{address}{self.asked}{before}{mark.hex()}{behind}"


def array(values: tuple[int, ...]) -> str:
    """COPY text of an array."""
    return "{" + ",".join(map(str, values)) + "}"
