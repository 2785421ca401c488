"""Channels' guaranteed stock: part of the supply, refused where it can't be, and shrinking by its rule to the unit."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from flashsale import merchandising
from flashsale.embedded import ValkeyServer
from flashsale.ledger import sales
from flashsale.pipeline.guarantees import Guarantees, caps
from flashsale.reservation import commands
from flashsale.sale.salefile import SaleFileFaults, parse_sale_file
from tests.integration.shop import FILE, Shop


@pytest.fixture
async def shop(valkey_memory: ValkeyServer, ledger: str) -> AsyncIterator[Shop]:
    """An engine without a sale."""
    async with Shop(valkey_memory.url, ledger) as shop:
        assert (await shop.recover()).ok
        yield shop


def text(sale_id: str, closes_at: str = "2099-01-01") -> str:
    return FILE.format(id=sale_id).replace("2099-01-01", closes_at)


async def create(shop: Shop, sale_id: str, guarantees: dict[str, int], closes_at: str = "2099-01-01") -> Any:
    file = guaranteeing(sale_id, guarantees, closes_at)
    return await merchandising.create(shop.valkey, shop.ledger, file, text(sale_id, closes_at))


def guaranteeing(sale_id: str, guarantees: dict[str, int], closes_at: str = "2099-01-01") -> Any:
    """The sale's file, its first offer with these guarantees."""
    file = parse_sale_file(text(sale_id, closes_at), "f.toml")
    first, *others = file.offers
    return replace(file, offers=(replace(first, guarantees=guarantees), *others))


async def test_a_channel_has_its_units_from_the_start(shop: Shop) -> None:
    await create(shop, "world", {"lazada-sg": 300, "tmall-world": 200})
    reading = await commands.read_sale(shop.valkey, "world")
    assert reading is not None
    assert (reading.available[0], reading.common[0]) == (1000, 500)
    assert reading.guarantees == {(0, 2): 300, (0, 1): 200}


@pytest.mark.parametrize(
    ("guarantees", "said"),
    [({"lazada-xx": 1}, "no channel 'lazada-xx'"), ({"lazada-sg": 600, "tmall-world": 401}, "the stock is 1000")],
)
async def test_what_can_not_be_guaranteed_is_refused_and_nothing_changed(
    shop: Shop, guarantees: dict[str, int], said: str
) -> None:
    with pytest.raises(merchandising.CommandRefused, match=said):
        await create(shop, "world", guarantees)
    assert await sales.get(shop.ledger, "world") is None


async def test_an_update_does_not_touch_what_is_guaranteed(shop: Shop) -> None:
    await create(shop, "world", {"lazada-sg": 300})
    with pytest.raises(SaleFileFaults, match="guarantees"):
        await merchandising.update(shop.valkey, shop.ledger, guaranteeing("world", {"lazada-sg": 299}), text("world"))


async def test_a_guarantee_shrinks_over_the_last_share_of_the_window(shop: Shop) -> None:
    await create(shop, "world", {"lazada-sg": 300, "tmall-world": 200})
    catalogue = await commands.load_catalogue(shop.valkey)
    reading = await commands.read_sale(shop.valkey, "world")
    assert catalogue is not None and reading is not None
    sale = catalogue.sale("world")
    assert sale is not None
    span = (reading.closes_at_ms - reading.opens_at_ms) // 5
    late = reading.closes_at_ms - span // 3 + 1
    assert list(caps(catalogue, sale, dataclasses.replace(reading, now_ms=late))) == [
        (0, 2, 300 * (span // 3 - 1) // span),
        (0, 1, 200 * (span // 3 - 1) // span),
    ]
    early = reading.closes_at_ms - span
    assert list(caps(catalogue, sale, dataclasses.replace(reading, now_ms=early))) == []


async def test_the_worker_moves_what_is_given_up_once(shop: Shop) -> None:
    await create(shop, "world", {"lazada-sg": 300, "tmall-world": 200}, "2021-01-01")  # over
    duty = Guarantees(shop.redis_url, shop.database_url)
    try:
        assert await duty.shrink() == 500
        assert await duty.shrink() == 0
    finally:
        await duty._client.aclose()
    reading = await commands.read_sale(shop.valkey, "world")
    assert reading is not None
    assert (reading.available[0], reading.common[0]) == (1000, 1000)
    assert reading.guarantees == {(0, 2): 0, (0, 1): 0}
