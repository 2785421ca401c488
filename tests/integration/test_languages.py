"""The pages speak the reader's language, over a real socket: problems, an order's next step, titles, amounts."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from flashsale.errors import PROBLEMS
from flashsale.languages import ENGLISH, LANGUAGES, say
from tests.integration import contract
from tests.integration.house import BOTH, SALE, SG_ONLY, House

CHINESE = """
[[offers]]
sku = "POT"
brand = "Midea"
title = { en = "Pot", zh = "锅", zh-TW = "鍋" }
stock = 12500
quota = 0
weight_g = 1000
prices = { SG = "25.00", HK = "188.00", VN = "450000", ID = "290000", KR = "25000" }
"""


async def read(house: House, path: str, **headers: str) -> tuple[Any, Any]:
    """The answer's headers and decoded body, held against the contract."""
    async with house.session.get(
        path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    ) as it:
        body = orjson.loads(await it.read())
        contract.check("GET", path, it.status, body)
        return it.headers, body


@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_problem_is_told_in_every_language(house: House, language: str) -> None:
    headers, problem = await read(house, "/v1/nothing", Accept_Language=language)
    assert (headers["Content-Language"], headers["Vary"]) == (language, "Accept-Language")
    assert problem["type"] == "/problems/not-found"
    assert problem["title"] == say("There is nothing here", language)
    assert problem["detail"] == say(PROBLEMS["not-found"].next_step, language)
    assert "next_step" not in problem


async def test_a_detail_of_one_occurrence_is_followed_by_what_to_do(house: House) -> None:
    _, problem = await read(house, "/v1/sales/night", Accept_Language="vi")
    assert problem["title"] == "Không có đợt bán này"
    assert problem["detail"] == "There is no sale 'night'."
    assert problem["next_step"] == "GET /v1/sales liệt kê các đợt bán."
    _, english = await read(house, "/v1/sales/night", Accept_Language="de")
    assert english == {
        "type": "/problems/unknown-sale",
        "title": "There is no such sale",
        "status": 404,
        "detail": "There is no sale 'night'.",
    }


async def test_the_published_problems_are_read_in_the_reader_s_language(house: House) -> None:
    headers, listed = await read(house, "/problems", Accept_Language="th;q=0.9, de")
    assert headers["Content-Language"] == "th"
    assert [each["title"] for each in listed["problems"]] == [say(each.title, "th") for each in PROBLEMS.values()]
    _, one = await read(house, "/problems/sold-out", Accept_Language="zh-HK")
    assert (one["title"], one["name"]) == ("已售完", "sold-out")
    async with house.session.get("/problems/sold-out", headers={"Accept": "text/html", "Accept-Language": "id"}) as it:
        page = await it.text()
    assert '<html lang="id">' in page
    assert "<h1>Stok habis</h1>" in page


async def test_an_order_says_its_next_step_in_the_shopper_s_language(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 2))
    path, token = f"/v1/orders/{order.id}", house.token("ada")
    plain_headers, plain = await read(house, path, **token)
    assert plain_headers["Content-Language"] == ENGLISH
    assert "total_text" not in plain
    assert set(plain["next"]) == {"do", "why", "until", "href"}
    headers, body = await read(house, path, **token, Accept_Language="id-ID,id;q=0.9,en;q=0.5")
    assert headers["Content-Language"] == "id"
    assert body["next"]["why"] == "Barang disimpan untuk Anda sampai saat itu."
    assert body["next"]["until"] == plain["next"]["until"]
    assert body["next"]["until_text"].endswith("UTC")
    assert body["total_text"] == "SGD\xa01.798,00"
    _, german = await read(house, path, **token, Accept_Language="de")  # no texts, but amounts and times
    assert (german["next"]["why"], german["total_text"]) == (plain["next"]["why"], "1.798,00\xa0SGD")


async def test_a_step_answers_in_the_shopper_s_language_too(house: House) -> None:
    await house.create_sale(("A", BOTH))
    order = await house.order("ada", ("A", 1))
    await house.settle()
    asked = house.token("ada") | {"Accept-Language": "fil"}
    body = await house.post(f"/v1/orders/{order.id}/cancellation", {}, **asked)
    assert body["next"] == {"do": "nothing", "why": "Kinansela na ang order."}


@pytest.mark.parametrize(
    ("query", "accept_language", "title", "price"),
    [
        ("market=HK", "", "鍋", None),
        ("market=SG", "", "Pot", None),
        ("market=HK&locale=zh-HK", "", "鍋", "HK$188.00"),
        ("market=HK&locale=zh-CN", "", "锅", "HK$188.00"),
        ("market=HK&locale=en-HK", "zh-CN", "Pot", "HK$188.00"),
        ("market=HK", "zh-CN,zh;q=0.9", "锅", "HK$188.00"),
        ("market=HK", "th", "鍋", "HK$188.00"),  # no title in Thai: the market's before English
        ("market=VN", "vi", "Pot", "450.000\xa0₫"),
        ("market=ID", "id", "Pot", "Rp\xa0290.000,00"),
        ("market=KR", "ko-KR", "Pot", "₩25,000"),
        ("market=SG", "xx, vi;q=0.1", "Pot", "25,00\xa0SGD"),
    ],
)
async def test_an_offer_is_titled_and_priced_for_its_reader(
    house: House, query: str, accept_language: str, title: str, price: str | None
) -> None:
    await house.create_sale(sale=SALE + CHINESE)
    asked = {"Accept_Language": accept_language} if accept_language else {}
    headers, body = await read(house, f"/v1/sales/night/offers?{query}", **asked)
    (offer,) = body["offers"]
    assert (offer["title"], offer.get("price_text")) == (title, price)
    assert headers["Vary"] == "Accept-Language"
    assert isinstance(offer["price"]["amount"], int)


async def test_all_markets_prices_and_the_next_page_keep_the_locale(house: House) -> None:
    await house.create_sale(("A", BOTH), ("B", SG_ONLY), sale=SALE + CHINESE)
    _, page = await read(house, "/v1/sales/night/offers?locale=id&limit=1")
    (pot,) = page["offers"]
    assert pot["available_text"] == "12.500"
    assert pot["price_texts"].keys() == pot["prices"].keys()
    assert pot["price_texts"]["KR"] == "₩25.000"
    _, second = await read(house, page["next"])
    assert second["offers"][0]["price_texts"] == {"SG": "SGD\xa0899,00", "TH": "฿18.990,00"}


@pytest.mark.parametrize("locale", ["", "xx", "zz-ZZ", "%00", "en&locale=th", "../etc", "e" * 300])
async def test_a_locale_that_is_none_is_refused(house: House, locale: str) -> None:
    await house.create_sale(("A", BOTH))
    problem = await house.get(f"/v1/sales/night/offers?locale={locale}", status=400)
    assert (problem["name"], problem["parameter"]) == ("malformed", "locale")


@pytest.mark.parametrize("header", ["*", ";;;,,,", "th;q=x", "\xff", "x" * 3000, "en-" * 200])
async def test_a_strange_accept_language_is_read_as_none(house: House, header: str) -> None:
    await house.create_sale(("A", BOTH))
    headers, body = await read(house, "/v1/sales/night/offers?market=SG", Accept_Language=header)
    assert headers["Content-Language"] == "en-SG"
    assert body["offers"][0]["title"] == "Fridge A"
