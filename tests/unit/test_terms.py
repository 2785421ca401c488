"""Terms are shared by orders that are alike, and by no others: an order is the same whoever asked for its like."""

import functools
from datetime import UTC, datetime
from importlib import resources

from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale import priced
from flashsale.sale.catalogue import Sale
from flashsale.sale.order import Address, Amount, Line, OrderRequest
from flashsale.sale.priced import RECORD_COLUMNS, IdentityMissing, Order, PricedSale
from flashsale.sale.salefile import parse_sale_file
from flashsale.sale.world import packaged

NOON_MS = int(datetime(2026, 11, 11, 12, tzinfo=UTC).timestamp() * 1000)
MARKETS = ("SG", "HK", "US", "CN")
CHANNELS = (None, "tmall-world", "lazada-sg", "tmall-global")
Asked = tuple[OrderRequest, str | None, bytes | None, bool]


@functools.cache
def fresh() -> PricedSale:
    text = resources.files("flashsale.sale").joinpath("double11.toml").read_text()
    return PricedSale(
        Sale.from_file(parse_sale_file(text, "double11.toml"), 1, bytes(32)), 1, 0, packaged(), NOON_MS
    )  # fmt: skip


@functools.cache
def kept() -> PricedSale:
    """One that has priced whatever was asked for before."""
    return PricedSale(fresh().sale, 1, 0, packaged(), NOON_MS)


def orders() -> st.SearchStrategy[Asked]:
    """What is asked for, the agent, the verified identity, and whether the channel has the money."""
    few = [offer.sku for offer in fresh().sale.offers[:4]]
    guaranteed = [offer.sku for offer in fresh().sale.offers if offer.guarantees][:2]
    line = st.builds(Line, sku=st.sampled_from(few + guaranteed), quantity=st.integers(1, 2))
    request = st.builds(
        OrderRequest,
        sale=st.just("double11"),
        lines=st.lists(line, min_size=1, max_size=2, unique_by=lambda each: each.sku),
        market=st.sampled_from(MARKETS),
        channel=st.sampled_from(CHANNELS),
        lane=st.sampled_from((None, "cainiao-standard", "bonded-ningbo", "no-such-lane")),
        ship_to=st.sampled_from((None, Address(country="SG", name="Ann \\ Lee"), Address(country="HK"))),
        expected_total=st.sampled_from((None, Amount(amount=1, currency="SGD"))),
    )
    return st.tuples(request, st.sampled_from((None, "agent")), st.sampled_from((None, bytes(10))), st.booleans())


def price(sale: PricedSale, asked: Asked) -> Order | str:
    """The order, or why it has no price."""
    order = Order()
    order.request, order.agent, order.identity, order.collected = asked
    order.shopper, order.key = "ann\\lee", "key"
    sale.identify(order)
    try:
        sale.price(order)
    except (priced.UnknownSku, IdentityMissing) as refusal:
        return repr(refusal)
    return order


NAMES = ("record", "head", "fields", "skus", "quantities", "quotas", "marks", "beyond", "id")


@given(orders())
def test_an_order_is_priced_the_same_whatever_was_priced_before(asked: Asked) -> None:
    once, again = price(PricedSale(fresh().sale, 1, 0, packaged(), NOON_MS, fresh()), asked), price(kept(), asked)
    if isinstance(once, str) or isinstance(again, str):
        assert once == again
        return
    assert [getattr(once, name) for name in NAMES] == [getattr(again, name) for name in NAMES]
    assert once.terms.json == again.terms.json
    assert once.terms.total == again.terms.total


@given(orders())
def test_a_record_says_what_was_asked(asked: Asked) -> None:
    order = price(kept(), asked)
    if isinstance(order, str):
        return
    request, agent, _, collected = asked
    # A record on a guarantee lacks its last column, which the script adds.
    text = order.record.decode()
    assert text.endswith("\t") == bool(order.terms.lines.pools)
    column = dict(zip(RECORD_COLUMNS, text.rstrip("\n").split("\t"), strict=True))
    assert (column["market"], column["channel"]) == (request.market, request.channel or "direct")
    assert column["quantities"] == "{" + ",".join(str(line.quantity) for line in request.lines) + "}"
    assert column["agent"] == (agent or "\\N")
    assert column["collected"] == ("t" if collected else "f")
    assert (column["ship_to"] == "\\N") == (request.ship_to is None)
    assert column["shopper"] == "ann\\\\lee"
    limited = order.terms.crossed is not None and order.terms.crossed.limit is not None
    assert (column["identity"] != "\\N") == limited
    assert order.beyond is None or (order.beyond.grant != b"") == (agent is not None)
    assert column["total"] == str(order.terms.total)


def test_terms_are_not_kept_without_end() -> None:
    sale = PricedSale(fresh().sale, 1, 0, packaged(), NOON_MS, fresh())
    sku = next(iter(sale.markets["SG"].offers))
    for number in range(priced.KEPT_MAX + 10):
        lines = [Line(sku=sku, quantity=1)]
        price(sale, (OrderRequest(sale="double11", lines=lines, market="SG", lane=f"lane-{number}"), None, None, False))
    assert len(sale._kept) == 10
