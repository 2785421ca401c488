"""Grants: in force at once, revoked at once, theirs alone who signed them, and every change of them in the log."""

from __future__ import annotations

import asyncio

from flashsale.ledger import movements
from flashsale.pipeline.journal_rows import movement_rows, read_journal
from flashsale.reservation import commands, keys
from tests.integration.house import House

GRANTS = "/v1/shoppers/me/grants"


async def in_force(house: House) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await house.valkey.hgetall(keys.grants(0))
    return found


async def revoke(house: House, grant_id: str, sub: str, status: int = 204) -> None:
    async with house.session.delete(f"{GRANTS}/{grant_id}", headers=house.token(sub)) as answer:
        assert answer.status == status, await answer.read()


async def store_log(house: House) -> None:
    """Brings the journal's movements to the ledger, as its writer does."""
    items = await read_journal(house.valkey, 0, (0, 0), 1000)
    await movements.store(house.ledger, movement_rows(0, items))


async def test_a_grant_is_in_force_until_it_is_revoked(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    ada = house.token("ada")
    grant = await house.post(GRANTS, {"agent": "li-wei"}, 201, **ada)
    assert (grant["agent"], grant["recipient"]) == ("li-wei", "ada")
    assert await house.post(GRANTS, {"agent": "li-wei"}, 201, **ada) == grant
    field = commands.grant_field("ada", "li-wei")
    assert await in_force(house) == {field: grant["id"].encode()}
    assert (await house.get(GRANTS, **ada))["grants"] == [grant]
    await revoke(house, grant["id"], "ada")
    await revoke(house, grant["id"], "ada")
    assert await in_force(house) == {}
    (revoked,) = (await house.get(GRANTS, **ada))["grants"]
    assert revoked["revoked_at"] >= revoked["granted_at"]
    again = await house.post(GRANTS, {"agent": "li-wei"}, 201, **ada)
    assert again["id"] != grant["id"]
    await revoke(house, grant["id"], "ada")  # the old one, again: the new one stands
    assert await in_force(house) == {field: again["id"].encode()}


async def test_nobody_else_reads_or_revokes_a_grant(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    grant = await house.post(GRANTS, {"agent": "li-wei"}, 201, **house.token("ada"))
    for sub in ("bea", "li-wei"):
        await house.get(f"{GRANTS}/{grant['id']}", 404, **house.token(sub))
        await revoke(house, grant["id"], sub, 404)
        assert (await house.get(GRANTS, **house.token(sub)))["grants"] == []
    assert len(await in_force(house)) == 1
    await house.get(f"{GRANTS}/grt_x", 404, **house.token("ada"))
    for body in ({}, {"agent": ""}, {"agent": "a\x1fb"}, {"agent": "x" * 129}, {"agent": "a", "for": "b"}):
        await house.post(GRANTS, body, 422, **house.token("ada"))


async def test_one_grant_comes_of_many_requests_at_once(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    made = await asyncio.gather(*(house.post(GRANTS, {"agent": "li-wei"}, 201, **house.token("ada")) for _ in range(8)))
    assert len({grant["id"] for grant in made}) == 1
    assert list((await in_force(house)).values()) == [made[0]["id"].encode()]


async def test_grants_are_read_page_by_page(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    ada = house.token("ada")
    made = [(await house.post(GRANTS, {"agent": f"agent-{n}"}, 201, **ada))["id"] for n in range(5)]
    seen, following = [], f"{GRANTS}?limit=2"
    while following:
        page = await house.get(following, **ada)
        seen += [grant["id"] for grant in page["grants"]]
        following = page.get("next")
    assert sorted(seen) == sorted(made)
    assert len(seen) == 5


async def test_a_grants_history_is_that_of_the_log(house: House) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    grant = await house.post(GRANTS, {"agent": "li-wei"}, 201, **house.token("ada"))
    await house.post(GRANTS, {"agent": "li-wei"}, 201, **house.token("ada"))
    await revoke(house, grant["id"], "ada")
    await store_log(house)
    read = await house.get(f"{GRANTS}/{grant['id']}", **house.token("ada"))
    assert [entry["event"] for entry in read["history"]] == ["granted", "revoked"]
    assert [entry["at"] for entry in read["history"]] == sorted(entry["at"] for entry in read["history"])
