"""What a sale file says of borders: codes, origins, sizes, seasons in the market's zone, channels' guarantees."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from flashsale.sale.catalogue import Sale, updated
from flashsale.sale.market import MARKETS
from flashsale.sale.salefile import SaleFile, SaleFileFaults, canonical, parse_sale_file

PLAIN = """\
[sale]
id = "s"
name = "n"
opens_at = 2026-11-10T16:00:00Z
closes_at = 2026-11-11T16:00:00Z
hold_seconds = 900
[[offers]]
sku = "A"
brand = "b"
title = { en = "t" }
stock = 10
quota = 0
weight_g = 100
prices = { SG = "1.00", AU = "2.00" }
"""
ACROSS = PLAIN.replace("[[offers]]", 'ships_from = "CN"\n[[offers]]') + 'hs_code = "8418.21"\norigin = "CN"\n'
LAST = ACROSS.count("\n")


def read(text: str) -> SaleFile:
    return parse_sale_file(text, "f.toml")


def faults(text: str) -> list[str]:
    with pytest.raises(SaleFileFaults) as found:
        read(text)
    return [str(fault) for fault in found.value.faults]


def test_a_file_that_says_nothing_of_borders_means_what_it_meant_before_there_were_any() -> None:
    # Word for word what the version before borders made of it: the ledger keeps this of every sale.
    assert canonical(read(PLAIN)) == (
        b'{"closes_at_ms":1794412800000,"extension_ms":0,"hold_ms":900000,"id":"s","name":"n","offers":[{"brand":"b",'
        b'"index":0,"prices":{"AU":200,"SG":100},"quota":0,"sku":"A","stock":10,"title":{"en":"t"},"weight_g":100}],'
        b'"opens_at_ms":1794326400000,"return_ms":2592000000,"return_quota":false}'
    )


@pytest.mark.parametrize(
    "line",
    [
        'merchant = "haier"',
        'service = "supermarket"',
        "size_mm = [600, 400, 300]",
        "windows = { AU = [2026-11-01, 2027-03-01] }",
        'guarantees = { "lazada-sg" = 4 }',
    ],
)
def test_each_key_changes_what_the_file_means(line: str) -> None:
    assert canonical(read(ACROSS + line)) != canonical(read(ACROSS))
    assert canonical(read(ACROSS)) != canonical(read(PLAIN))


def test_a_sale_and_its_offers_carry_what_the_file_says() -> None:
    file = read(ACROSS + 'merchant = "haier"\nservice = "supermarket"\nsize_mm = [600, 400, 300]\n')
    sale = Sale.from_file(file, 1, bytes(32))
    (offer,) = sale.offers
    assert sale.ships_from == "CN"
    assert (offer.hs_code, offer.origin, offer.merchant) == ("841821", "CN", "haier")
    assert (offer.service, offer.size_mm) == ("supermarket", (600, 400, 300))


@given(
    code=st.sampled_from(sorted(MARKETS)),
    days=st.lists(st.dates(date(2000, 1, 2), date(2099, 12, 30)), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_a_season_begins_and_ends_at_midnight_of_the_market(code: str, days: list[date]) -> None:
    text = PLAIN.replace('AU = "2.00"', f'{code} = "2"') if code != "SG" else PLAIN
    file = read(text + f"windows = {{ {code} = [{days[0]}, {days[1]}] }}\n")
    local = [datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(MARKETS[code].zone)) for ms in _window(file)]
    assert [moment.date() for moment in local] == days
    # A day that begins with summer time has no midnight, in a few places: then it begins an hour later.
    assert all((moment.hour, moment.minute, moment.second) in ((0, 0, 0), (1, 0, 0)) for moment in local)


def _window(file: SaleFile) -> tuple[int, int]:
    ((window),) = file.offers[0].windows.values()
    return window


def test_every_market_has_a_zone_that_exists() -> None:
    assert {market.zone for market in MARKETS.values()} <= available_timezones()


def test_an_offer_across_a_border_needs_its_code_its_origin_and_its_weight() -> None:
    text = PLAIN.replace("[[offers]]", 'ships_from = "CN"\n[[offers]]').replace("weight_g = 100", "weight_g = 0")
    assert faults(text) == [
        "f.toml:8: offers[0].hs_code: is missing: the sale ships across borders",
        "f.toml:8: offers[0].origin: is missing: the sale ships across borders",
        "f.toml:14: offers[0].weight_g: must be above 0: the sale ships across borders",
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('merchant = "Haier AG"', "offers[0].merchant: 'Haier AG' is not a merchant"),
        ("merchant = 5", "offers[0].merchant: must be text"),
        ('service = "express"', "offers[0].service: 'express' is not a kind of lane: supermarket"),
        ("size_mm = [1, 2]", "offers[0].size_mm: must be three whole numbers"),
        ("size_mm = [1, 2, true]", "offers[0].size_mm: must be three whole numbers"),
        ("size_mm = [1, 2, 0]", "offers[0].size_mm: must have sides of 1 to 20000 mm"),
        ("size_mm = 5", "offers[0].size_mm: must be three whole numbers"),
        ("windows = { NZ = [2026-11-01, 2027-03-01] }", "offers[0].windows.NZ: the offer has no price"),
        ("windows = { AU = [2026-11-01] }", "offers[0].windows.AU: must be two dates"),
        ("windows = { AU = [2026-11-01, 2026-11-01] }", "offers[0].windows.AU: must end after it begins"),
        ("windows = { AU = [2026-11-01T00:00:00Z, 2026-12-01T00:00:00Z] }", "offers[0].windows.AU: must be two dates"),
        ("windows = 1", "offers[0].windows: must be a table"),
        ('guarantees = { "lazada-sg" = 6, "lazada-my" = 5 }', "offers[0].guarantees: must not be more than the stock"),
        ('guarantees = { "lazada-sg" = 0 }', "offers[0].guarantees.lazada-sg: must be 1 to"),
        ("guarantees = { LAZADA = 1 }", "offers[0].guarantees.LAZADA: is no channel's id"),
        ("guarantee = 1", "offers[0].guarantee: is unknown; did you mean guarantees?"),
    ],
)
def test_each_fault_names_its_line_and_field(line: str, said: str) -> None:
    (fault,) = faults(ACROSS + line)
    assert fault.startswith(f"f.toml:{LAST + 1}: {said}")


@pytest.mark.parametrize("code", ["841", "8418.21.00.001", "84,18", "8418.", "x", "84182100001", "٨٤١٨"])
def test_what_is_no_hs_code_is_refused(code: str) -> None:
    (fault,) = faults(ACROSS.replace("8418.21", code))
    assert ": offers[0].hs_code: " in fault


@given(st.text("0123456789", min_size=4, max_size=10))
def test_an_hs_code_is_kept_as_its_digits_however_it_is_written(digits: str) -> None:
    dotted = ".".join(filter(None, (digits[:4], digits[4:6], digits[6:8], digits[8:])))
    for written in (digits, dotted):
        assert read(ACROSS.replace("8418.21", written)).offers[0].hs_code == digits


def test_the_guarantees_of_an_offer_never_change_by_an_update() -> None:
    old = Sale.from_file(read(ACROSS + 'guarantees = { "lazada-sg" = 4 }'), 1, bytes(32))
    for line, left in (("", "{ lazada-sg = 4 }"), ('guarantees = { "lazada-sg" = 5 }', "{ lazada-sg = 4 }")):
        with pytest.raises(SaleFileFaults, match=left):
            updated(old, read(ACROSS + line))
    same = updated(old, read(ACROSS + 'guarantees = { "lazada-sg" = 4 }\nmerchant = "haier"'))
    assert same == replace(old, offers=(replace(old.offers[0], merchant="haier"),))
