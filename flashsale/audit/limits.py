"""Checks of what is limited beyond a sale's stock: lanes' days, buyers' imports, and who may order for whom.

What was scanned between `since` and `until` may or may not know what moved in between; all else must agree to the unit.
"""

from __future__ import annotations

from datetime import date, timedelta

from flashsale.audit.report import FAULTS_MAX
from flashsale.audit.snapshot import Snapshot
from flashsale.ledger import held
from flashsale.reservation.commands import grant_field
from flashsale.reservation.limits import LaneDay, parse
from flashsale.sale.catalogue import Catalogue

# The fields of limits.py, in hexadecimal.
_LANE = "'4c' || lpad(to_hex(lane), 4, '0') || lpad(to_hex(day), 8, '0') || '000000000000'"
_IMPORT = "'49' || identity || lpad(to_hex(year), 4, '0')"
_CHANGES = (
    f"SELECT {_LANE} AS field, units, journal_ms, journal_seq FROM ({held.lane_changes('seen', 'moved')}) AS lanes"  # noqa: S608
    f" UNION ALL SELECT {_IMPORT}, units, journal_ms, journal_seq"
    f"  FROM ({held.import_changes('seen', 'moved')}) AS people"
)


async def check(look: Snapshot, catalogues: dict[int, Catalogue]) -> None:
    """All of it."""
    await _counters(look)
    await _capacities(look, catalogues)
    await _annual(look, catalogues)
    await _grants_in_force(look)
    await _agents(look)


async def _counters(look: Snapshot) -> None:
    """I1: Valkey's counters of parcels and imports are the sums of what orders took and gave back."""
    for row in await look.ledger.fetch(
        "SELECT field, coalesce(used, 0), coalesce(now, 0) FROM limited FULL JOIN"  # noqa: S608
        " (SELECT field, sum(units)::int8 AS now,"
        "  coalesce(sum(units) FILTER (WHERE units < 0 OR early), 0) AS least,"
        "  coalesce(sum(units) FILTER (WHERE units > 0 OR early), 0) AS most FROM"
        "   (SELECT field, units, (journal_ms, journal_seq) <= ($1::int8, $2::int8) AS early"
        f"   FROM ({_CHANGES}) AS changes) AS timed GROUP BY field) AS counted USING (field)"
        " WHERE coalesce(used, 0) NOT BETWEEN coalesce(least, 0) AND coalesce(most, 0) LIMIT $3",
        *look.since, FAULTS_MAX,
    ):  # fmt: skip
        look.fault("I1", f"{_named(row[0])}: Valkey counts {row[1]}, the orders {row[2]}")


def _named(field: str) -> str:
    try:
        limit = parse(bytes.fromhex(field))
    except ValueError as fault:
        return str(fault)
    if isinstance(limit, LaneDay):
        return f"lane {limit.lane} on {date(1970, 1, 1) + timedelta(days=limit.day)}"
    return f"an identity's imports of {limit.year} ({limit.identity.hex()})"


async def _capacities(look: Snapshot, catalogues: dict[int, Catalogue]) -> None:
    """I2: no more parcels on a lane's day than the catalogues that its orders were priced at allow."""
    capacity: dict[tuple[int, int], int] = {}
    for lane, day, version, number, market, at_ms in await look.ledger.fetch(
        "SELECT lane_number, dispatch_day, catalogue_version, sale, market, min(journal_ms) FROM seen"
        " WHERE lane_number IS NOT NULL GROUP BY 1, 2, 3, 4, 5"
    ):
        catalogue = catalogues.get(version)
        sale = catalogue.by_number(number) if catalogue is not None else None
        if catalogue is None or sale is None:
            continue
        for each in catalogue.world.lanes.at(market, sale.ships_from, at_ms):
            if each.number == lane:
                allowed = each.capacity or 2**62
                capacity[lane, day] = max(capacity.get((lane, day), 0), allowed)
    if not capacity:
        return
    for lane, day, parcels in await look.ledger.fetch(
        f"SELECT lane, day, sum(units)::int8 FROM ({held.lane_changes('seen', 'moved')}) AS changes"  # noqa: S608
        " GROUP BY lane, day"
    ):
        if parcels > capacity.get((lane, day), parcels):
            detail = f"lane {lane} has {parcels} parcels on day {day}, its capacity is {capacity[lane, day]}"
            look.fault("I2", detail)


async def _annual(look: Snapshot, catalogues: dict[int, Catalogue]) -> None:
    """I2: nobody imports more in a year than the rules that the orders were priced at allow."""
    annual: dict[int, int] = {}
    for year, version, number, market, at_ms in await look.ledger.fetch(
        "SELECT limit_year, catalogue_version, sale, market, min(journal_ms) FROM seen WHERE identity IS NOT NULL"
        " GROUP BY 1, 2, 3, 4"
    ):
        catalogue = catalogues.get(version)
        sale = catalogue.by_number(number) if catalogue is not None else None
        if catalogue is None or sale is None:
            continue
        regime = catalogue.world.trade.regime(market, sale.ships_from, at_ms)
        if regime is not None and regime.limit is not None:
            annual[year] = max(annual.get(year, 0), regime.limit.annual)
    for row in await look.ledger.fetch(
        "SELECT c.identity, c.year, sum(units)::int8, max(annual)"  # noqa: S608
        f" FROM ({held.import_changes('seen', 'moved')}) AS c"
        " JOIN unnest($1::int4[], $2::int8[]) AS a (year, annual) ON a.year = c.year"
        " GROUP BY c.identity, c.year HAVING sum(units) > max(annual) LIMIT $3",
        list(annual), list(annual.values()), FAULTS_MAX,
    ) if annual else ():  # fmt: skip
        look.fault("I2", f"an identity ({row[0]}) imported {row[2]} in {row[1]}, the limit is {row[3]}")


async def _grants_in_force(look: Snapshot) -> None:
    """I2: Valkey knows the grants that are in force, and no others."""
    expected = {
        grant_field(*between).hex(): (between, grant)
        for between, grant in (await held.grants(look.ledger, look.partition, look.until, movement="moved")).items()
    }
    moving = {
        grant_field(row[0], row[1]).hex()
        for row in await look.ledger.fetch(
            "SELECT DISTINCT detail ->> 'recipient', detail ->> 'agent' FROM moved WHERE kind = 'grant'"
            " AND (journal_ms, journal_seq) > ($1::int8, $2::int8)",
            *look.since,
        )
    }
    known = {row[0]: row[1] for row in await look.ledger.fetch("SELECT DISTINCT ON (field) field, id FROM granted")}
    for field in sorted((expected.keys() | known.keys()) - moving):
        if field not in expected:
            look.fault("I2", f"Valkey has a grant {known[field]!r} that no movement explains")
        elif known.get(field) != expected[field][1]:
            (recipient, agent), grant = expected[field]
            there = f"has {known[field]!r}" if field in known else "has none"
            look.fault("I2", f"a grant of {recipient!r} to {agent!r} is {grant!r} by the movements, Valkey {there}")


async def _agents(look: Snapshot) -> None:
    """I2: who ordered for another had a grant in force at that moment."""
    if not await look.ledger.fetchval("SELECT EXISTS (SELECT FROM seen WHERE agent IS NOT NULL)"):
        return
    await look.ledger.execute(
        "CREATE TEMP TABLE grant_moves AS SELECT detail ->> 'recipient' AS recipient, detail ->> 'agent' AS agent,"
        " (detail ->> 'on')::bool AS holds, journal_ms, journal_seq FROM moved WHERE kind = 'grant';"
        "CREATE INDEX ON grant_moves (recipient, agent, journal_ms, journal_seq)"
    )
    for row in await look.ledger.fetch(
        "SELECT s.id, s.sale, s.agent FROM seen AS s WHERE s.agent IS NOT NULL AND NOT coalesce((SELECT g.holds"
        "  FROM grant_moves AS g WHERE g.recipient = s.shopper AND g.agent = s.agent"
        "  AND (g.journal_ms, g.journal_seq) < (s.journal_ms, s.journal_seq)"
        "  ORDER BY g.journal_ms DESC, g.journal_seq DESC LIMIT 1), false) LIMIT $1",
        FAULTS_MAX,
    ):
        detail = f"{row[2]!r} ordered for another, and had no grant then"
        look.fault("I2", detail, sale=look.sale_id(row[1]), order=row[0])
