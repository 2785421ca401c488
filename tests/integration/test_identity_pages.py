"""Verified identities over a real provider's port: one person, one identity; what nobody keeps; what happens when the
provider says no, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from flashsale.errors import Refused
from flashsale.front.identities import IdentityTokens
from flashsale.front.verification import DOCUMENT_TRIES_MAX, TRIES_MAX
from flashsale.partners.identities.http import HttpIdentityProvider
from flashsale.partners.identities.sandbox import server
from flashsale.reservation import keys
from flashsale.reservation.limits import identity_field
from tests.integration.house import House

PAGE = "/v1/shoppers/me/identity"
LI = {"country": "CN", "number": "11010519491231002X", "name": "Li Wei"}
KEY = "a key of the tests"


class Provider:
    """The sandbox's port, and the tokens that the house binds identities with."""

    def __init__(self, address: str, tokens: IdentityTokens) -> None:
        self.address, self.tokens = address, tokens

    async def ask(self, path: str, body: object = None) -> Any:
        method = "GET" if body is None else "POST"
        async with aiohttp.request(method, self.address + path, json=body) as answer:
            assert answer.status in (200, 204)
            return await answer.json() if answer.status == 200 else None


@pytest.fixture
async def provider(house: House) -> AsyncIterator[Provider]:
    runner, address = await server.start(0, KEY)
    asked = house.context.identities = HttpIdentityProvider(address, KEY, timeout_s=2)
    tokens = house.context.identity_tokens = IdentityTokens(b"a secret")
    yield Provider(address, tokens)
    await asked.aclose()
    await runner.cleanup()


async def test_one_person_under_two_shoppers_is_one_identity(house: House, provider: Provider) -> None:
    ada = await house.post(PAGE, LI, **house.token("ada"))
    bea = await house.post(PAGE, {**LI, "number": "11010519491231002x "}, **house.token("bea"))
    assert ada["country"] == "CN"
    assert provider.tokens.read(ada["identity"], "ada") == provider.tokens.read(bea["identity"], "bea")
    with pytest.raises(Refused, match="identity-unverified"):
        provider.tokens.read(ada["identity"], "bea")
    assert await house.post(PAGE, LI, **house.token("ada")) == ada
    assert (await provider.ask("/sandbox/health"))["checks"] == 2  # what is known is not asked again


async def test_the_years_limit_is_told_with_what_is_used(house: House, provider: Provider) -> None:
    await house.create_sale(("A", 'SG = "5.05"'))
    await house.context.catalogues.refresh()
    first = await house.post(PAGE, LI, **house.token("ada"))
    limits, identity = first["limits"], provider.tokens.read(first["identity"], "ada")
    # https://www.gov.cn: 财关税〔2018〕49号, 5,000 yuan an order and 26,000 a year
    assert (limits["single"]["amount"], limits["annual"]["amount"]) == (500_000, 2_600_000)
    assert (limits["used"]["amount"], limits["left"]["amount"]) == (0, 2_600_000)
    await house.valkey.hset(keys.limits(0), identity_field(identity, limits["year"]), 600_000)
    again = (await house.post(PAGE, LI, **house.token("ada")))["limits"]
    assert (again["used"]["amount"], again["left"]["amount"]) == (600_000, 2_000_000)


async def test_another_name_is_refused_and_tries_are_counted(house: House, provider: Provider) -> None:
    await provider.ask("/sandbox/people", LI)
    for _ in range(TRIES_MAX):
        refused = await house.post(PAGE, {**LI, "name": "Wang Fang"}, 422, **house.token("eve"))
        assert refused["name"] == "identity-unverified"
    late = await house.post(PAGE, LI, 429, **house.token("eve"))
    assert 0 < late["retry_after"] <= 86_400
    assert (await provider.ask("/sandbox/health"))["checks"] == TRIES_MAX
    await house.post(PAGE, LI, **house.token("ada"))  # another shopper's tries are another's


async def test_a_documents_tries_are_counted_whoever_asks(house: House, provider: Provider) -> None:
    await provider.ask("/sandbox/people", LI)
    statuses = []
    for number in range(DOCUMENT_TRIES_MAX + 2):  # as many accounts, a name each
        body, who = {**LI, "name": f"Name {number}"}, house.token(f"account-{number}")
        async with house.session.post(PAGE, json=body, headers=who) as answer:
            statuses.append(answer.status)
    assert statuses == [422] * DOCUMENT_TRIES_MAX + [429] * 2
    assert (await provider.ask("/sandbox/health"))["checks"] == DOCUMENT_TRIES_MAX


async def test_tries_at_once_are_counted_too(house: House, provider: Provider) -> None:
    await provider.ask("/sandbox/people", LI)

    async def attempt(number: int) -> int:
        body = {**LI, "name": f"Name {number}"}
        async with house.session.post(PAGE, json=body, headers=house.token("eve")) as answer:
            return answer.status

    statuses = await asyncio.gather(*(attempt(number) for number in range(3 * TRIES_MAX)))
    assert statuses.count(422) == (await provider.ask("/sandbox/health"))["checks"] <= TRIES_MAX
    assert set(statuses) <= {422, 429, 503}


async def test_a_provider_that_is_away_costs_no_try(house: House, provider: Provider) -> None:
    await provider.ask("/sandbox/faults", {"away": TRIES_MAX + 1})
    for _ in range(TRIES_MAX + 1):
        assert (await house.post(PAGE, LI, 503, **house.token("ada")))["name"] == "overloaded"
    await house.post(PAGE, LI, **house.token("ada"))


async def test_a_wrong_key_is_a_provider_that_is_away(house: House, provider: Provider) -> None:
    house.context.identities = wrong = HttpIdentityProvider(provider.address, "another key", timeout_s=2)
    await house.post(PAGE, LI, 503, **house.token("ada"))
    await wrong.aclose()
    house.context.identities = None
    await house.post(PAGE, LI, 503, **house.token("ada"))


async def test_what_is_not_well_written_is_named_and_never_asked(house: House, provider: Provider) -> None:
    for body, field in (
        ({**LI, "number": "110105194912310021"}, "number"),
        ({**LI, "number": "x" * 65}, "number"),
        ({**LI, "country": "XX"}, "country"),
        ({**LI, "name": " "}, "name"),
        ({**LI, "extra": 1}, "extra"),
    ):
        refused = await house.post(PAGE, body, 422, **house.token("ada"))
        assert list(refused["fields"]) == [field]
        assert body["number"] not in str(refused)
    assert (await provider.ask("/sandbox/health"))["checks"] == 0


async def test_no_number_is_kept_or_logged(house: House, provider: Provider, capfd: pytest.CaptureFixture[str]) -> None:
    await house.post(PAGE, LI, **house.token("ada"))
    await provider.ask("/sandbox/people", {**LI, "name": "Somebody else"})
    await house.post(PAGE, LI, 422, **house.token("bea"))
    await provider.ask("/sandbox/faults", {"away": 1})
    await house.post(PAGE, LI, 503, **house.token("eve"))
    tables = await house.ledger.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    kept = [
        str(dict(row))
        for (name,) in tables
        for row in await house.ledger.fetch(f'SELECT t::text FROM "{name}" AS t')  # noqa: S608
    ]
    assert any("ada" in row for row in kept)
    told = capfd.readouterr()
    assert "away" in told.out + told.err
    for text in (*kept, told.out, told.err):
        assert LI["number"] not in text
        assert LI["number"].encode().hex() not in text


async def test_the_key_is_made_once(house: House, provider: Provider) -> None:
    answers = await asyncio.gather(*(house.post(PAGE, LI, **house.token(f"shopper-{n}")) for n in range(4)))
    read = {provider.tokens.read(each["identity"], f"shopper-{n}") for n, each in enumerate(answers)}
    assert len(read) == 1
    assert await house.ledger.fetchval("SELECT count(*) FROM identity_key") == 1
