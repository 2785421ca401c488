"""The bench's verdicts and its reading of wrk, without any load."""

from bench.figures import FIGURES, Figure
from bench.load import read_wrk
from bench.report import document, table

MORE = Figure("more", "more is better", reach=7, aim=12, higher=True)
LESS = Figure("less", "less is better", reach=3.8, aim=2.5, higher=False)
ONLY_AIM = Figure("told", "only reported", reach=None, aim=5, higher=False)

WRK = """Running 3s test @ http://127.0.0.1:8080
  1 threads and 256 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    10.00ms    2.00ms  1.05s    90.00%
    Req/Sec    20.00k     1.00k   22.00k    90.00%
  Latency Distribution
     50%  900.00us
     75%   10.00ms
     90%   11.00ms
     99%    1.02s
  60000 requests in 3.02s, 20.00MB read
  Socket errors: connect 0, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 17
Requests/sec:  19867.55
"""


def test_the_median_decides_whichever_way_is_better() -> None:
    assert MORE.verdict([20, 8, 6]) == "reached"
    assert MORE.verdict([12, 12.5, 30]) == "aim"
    assert MORE.verdict([6.9]) == "MISSED"
    assert LESS.verdict([2.5]) == "aim"
    assert LESS.verdict([3.9]) == "MISSED"
    assert ONLY_AIM.verdict([5.1]) == "reported"
    assert ONLY_AIM.verdict([4.9]) == "aim"


def test_what_wrk_says_is_read_in_seconds_and_milliseconds() -> None:
    seen = read_wrk(WRK)
    assert (seen.answers, seen.refused, seen.broken, seen.seconds) == (60_000, 17, 5, 3.02)
    assert (seen.p50_ms, seen.p99_ms) == (0.9, 1020)


def test_table_and_json_show_median_and_spread_of_what_was_measured() -> None:
    first = FIGURES[0]
    samples = {first.name: [8.0, 11.0, 9.0]}
    assert "9.00" in table(samples)
    assert "8.00–11.0" in table(samples)
    assert FIGURES[1].title not in table(samples)
    content = document(samples, [], seconds=8)
    assert content["figures"][first.name]["median"] == 9
    assert content["figures"][first.name]["verdict"] == "reached"
