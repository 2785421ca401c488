"""Sales channels: the data, what each may sell, and how a guarantee shrinks."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashsale.sale import channels
from flashsale.sale.channels import Channel, own_shopper, shopper_of
from flashsale.sale.offer import Offer

LAZADA = {"lazada-sg": "SG", "lazada-my": "MY", "lazada-th": "TH", "lazada-id": "ID", "lazada-ph": "PH"}


def _offer(index: int, **given: object) -> Offer:
    fields = {"stock": 10, "quota": 0, "weight_g": 1, "prices": {"SG": 100}, **given}
    return Offer(sku=f"S{index}", index=index, brand="b", title={"en": "t"}, **fields)  # type: ignore[arg-type]


def test_the_platform_sells_through_its_channels() -> None:
    known = {channel.id: channel for channel in channels.load()}
    assert {name: known[name].markets for name in LAZADA} == {name: (market,) for name, market in LAZADA.items()}
    assert {known[name].kind for name in LAZADA} == {"marketplace"}
    assert (known["tmall-world"].kind, known["tmall-world"].serves("AU")) == ("web", True)
    assert (known["aliexpress"].kind, known["aliexpress"].serves("BR")) == ("marketplace", True)
    assert (known["tmall-global"].kind, known["tmall-global"].markets) == ("import", ("CN",))
    assert sorted(channel.number for channel in known.values()) == list(range(1, 9))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("number = 1", "same number"),
        ("number = 0", "1..255"),
        ("number = 256", "1..255"),
        ('number = 9\nkind = "shop"', "kind"),
        ("number = 9\nshrink_share = 1.5", "shrink_share"),
    ],
)
def test_a_wrong_file_is_refused(change: str, why: str) -> None:
    head = '[[channels]]\nid = "a"\nnumber = 1\nname = "A"\nkind = "web"\n[[channels]]\nid = "b"\nname = "B"\n'
    rest = change if "kind" in change else f'{change}\nkind = "web"'
    with pytest.raises(ValueError, match=why):
        channels.parse((head + rest).encode())
    with pytest.raises(ValueError, match="same id"):
        channels.parse((head.replace('"b"', '"a"') + 'number = 9\nkind = "web"').encode())


@given(
    initial=st.integers(0, 10**9),
    opens_ms=st.integers(0, 10**13),
    window_ms=st.integers(1, 10**10),
    times=st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_a_guarantee_only_shrinks_from_all_to_nothing(
    initial: int, opens_ms: int, window_ms: int, times: tuple[float, float], share: float
) -> None:
    channel = Channel("c", 1, "C", "web", shrink_share=share)
    closes_ms = opens_ms + window_ms
    early, late = (opens_ms + int(part * window_ms) for part in sorted(times))
    left = [channel.guarantee_left(initial, opens_ms, closes_ms, now_ms) for now_ms in (early, late)]
    assert initial >= left[0] >= left[1] >= 0
    span = int(window_ms * share)
    if span and late <= closes_ms:
        exact = initial * min(Fraction(1), Fraction(closes_ms - late, span))
        assert left[1] == exact.numerator // exact.denominator
    if span:
        assert channel.guarantee_left(initial, opens_ms, closes_ms, closes_ms) == 0
        assert channel.guarantee_left(initial, opens_ms, closes_ms, closes_ms - span) == initial
    else:
        assert left == [initial, initial]


@given(
    common=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    own=st.dictionaries(st.integers(0, 5), st.integers(0, 100)),
    suspended=st.frozensets(st.integers(0, 5)),
)
def test_a_channel_may_sell_its_guarantee_and_the_common_pool(
    common: list[int], own: dict[int, int], suspended: frozenset[int]
) -> None:
    offers = [_offer(index) for index in range(len(common))]
    sellable = Channel("c", 1, "C", "web").sellable(offers, common, own, suspended, 5)
    for index, units in enumerate(common):
        assert sellable[index] == (0 if index in suspended else units + own.get(index, 0))
    assert Channel("c", 1, "C", "web", markets=("TH",)).sellable(offers, common, own, suspended, 5) == {}


def test_an_offer_out_of_season_in_all_of_a_channels_markets_is_not_sold_there() -> None:
    offer = _offer(0, prices={"SG": 1, "AU": 1}, windows={"AU": (10, 20)})
    sydney, anywhere = Channel("a", 1, "A", "web", markets=("AU",)), Channel("b", 2, "B", "web")
    units = [sydney.sellable([offer], [7], {}, frozenset(), now_ms)[0] for now_ms in (9, 10, 19, 20)]
    assert units == [0, 7, 7, 0]
    assert anywhere.sellable([offer], [7], {}, frozenset(), 30) == {0: 7}


def test_a_channels_shoppers_are_a_namespace_of_its_own() -> None:
    assert shopper_of("a", "x") != shopper_of("b", "x")
    assert own_shopper("a", shopper_of("a", "x")) == "x"
    assert own_shopper("a", "x") == "x"  # who ordered at the shop itself, and named the channel
