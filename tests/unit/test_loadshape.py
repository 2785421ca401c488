"""The shape of the load test's crowd, before any request is sent."""

from pathlib import Path

import pytest

from loadtests.crowd import EVENING, Crowd, read_counts
from loadtests.popularity import Demand


def test_the_evening_climbs_peaks_and_falls_off_a_cliff() -> None:
    counts = read_counts(EVENING)
    peak = counts.index(max(counts))
    assert max(counts) == 215_241
    assert counts[0] < max(counts) / 2, "it climbs"
    assert counts[peak + 30] < max(counts) / 4, "and half an hour after the peak the crowd is gone"


def test_requests_a_minute_follow_the_table_to_the_request() -> None:
    crowd = Crowd(read_counts(EVENING), height=300, speed=60)
    moments = list(crowd.arrivals())
    sent = [0] * len(crowd.counts)
    for moment in moments:
        sent[crowd.minute_of(moment)] += 1
    assert moments == sorted(moments)
    assert len(moments) == crowd.total
    assert moments[-1] <= crowd.duration_s
    assert all(abs(s - e) <= 1.5 for s, e in zip(sent, crowd.expected(), strict=True))
    assert crowd.deviations(sent) == []


def test_height_is_the_rate_of_the_highest_minute_and_speed_its_length() -> None:
    crowd = Crowd([10, 40, 20], height=1000, speed=30)
    assert crowd.minute_s == 2
    assert crowd.expected() == [500, 2000, 1000]
    assert crowd.duration_s == 6


def test_a_generator_that_falls_behind_is_told() -> None:
    crowd = Crowd([10, 40, 20], height=1000, speed=30)
    assert crowd.deviations([500, 1600, 1400]) == [(1, 1600, 2000), (2, 1400, 1000)]


@pytest.mark.parametrize(
    "text", ["", "minute,requests\n", "minute,requests\na,0\n", "minute,count\na,3\n", "minute,requests\na,x\n"]
)
def test_a_table_without_requests_is_refused_by_name(tmp_path: Path, text: str) -> None:
    table = tmp_path / "counts.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=r"counts\.csv"):
        read_counts(table)


def test_demand_is_skewed_as_in_the_retail_data() -> None:
    demand = Demand([f"SKU-{n}" for n in range(100)], seed=11)
    draws = [demand.sku() for _ in range(50_000)]
    share_of_first_ten = sum(draws.count(f"SKU-{n}") for n in range(10)) / len(draws)
    assert 0.22 < share_of_first_ten < 0.30, "Olist: 25% of the lines of its first hundred SKUs"


def test_a_tenth_of_the_orders_have_several_lines_never_one_sku_twice() -> None:
    demand = Demand([f"SKU-{n}" for n in range(100)], seed=11)
    orders = [demand.lines() for _ in range(20_000)]
    assert 0.08 < sum(len(lines) > 1 for lines in orders) / len(orders) < 0.12
    assert all(len({sku for sku, _ in lines}) == len(lines) for lines in orders)


def test_a_sale_of_two_offers_has_orders_of_two_lines_at_most() -> None:
    demand = Demand(["A", "B"], seed=11)
    assert max(len(demand.lines()) for _ in range(2_000)) == 2
