"""What other HTTP servers were tried with: every request gets the verdict that the corpus's README names, split or not.

Every request goes whole, and a seeded sample of splits; `FLASHSALE_FULL=1` splits each at every byte (several minutes).
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from tests import corpora
from tests.conftest import Engine
from tests.e2e.conftest import READ_TIMEOUT_S
from tests.wire import Answer, Wire, get

QUIET_S = 1.0  # an answer that has not come by then is not coming: the server has nothing else to do
GAP_S = 0.02  # between the two parts: long enough for the first to be read alone, at the number of connections below
AT_ONCE = 300
SPLITS_AT_ONCE = 24  # few enough that the server is not the bottleneck, else it would read both parts at once
SAMPLE = 1500  # splits of a run that is not full
SEED = 1111
PROBE = get("/livez", "", b"Connection: close")  # answered, and the last of its connection: it ends what goes on

CLOSED, GOES_ON, WAITS = "closed", "goes on", "waits for more"


class Verdict(NamedTuple):
    """The final statuses, and what became of the connection afterwards."""

    statuses: tuple[int, ...]
    then: str


class Case(NamedTuple):
    name: str
    raw: bytes
    expect: str
    answered: int  # requests before the one at fault

    @property
    def may_wait(self) -> bool:
        return "incomplete" in self.expect

    @property
    def changes_protocol(self) -> bool:
        return b"\nupgrade:" in self.raw.lower()


CASES = [
    Case(f"{x['id']} {x['name']}", base64.b64decode(x["raw_b64"]), x["expect"], x["ok_requests_before_error"])
    for x in corpora.load("http/requests.json")
]


async def whole(port: int, case: Case) -> Verdict:
    """The request in one write."""
    with await Wire.open(port) as wire:
        await wire.send(case.raw)
        statuses = _statuses(await wire.read_until_quiet(QUIET_S))
        if wire.ended:
            return Verdict(statuses, CLOSED)
        if case.may_wait:
            began = time.monotonic()
            late = _statuses(await wire.read_to_end())
            assert late == statuses, f"answered an unfinished request: {late}"
            assert time.monotonic() - began < READ_TIMEOUT_S + 2
            return Verdict(statuses, WAITS)
        await wire.send(PROBE)
        probed = _statuses(await wire.read_to_end())
        if case.changes_protocol and probed[:-1] == statuses and probed[-1] >= 400:
            # Its last bytes are of another protocol, which it was not given: the beginning of a request, to us.
            return Verdict(statuses, WAITS)
        assert probed == (*statuses, 200), "the next request on it was not answered"
        return Verdict(statuses, GOES_ON)


async def split(port: int, case: Case, at: int, wanted: Verdict) -> Verdict:
    """The request in two writes, the second of which comes when the first has been read."""
    with await Wire.open(port) as wire:
        await wire.send(case.raw[:at])
        await asyncio.sleep(GAP_S)
        await wire.send(case.raw[at:])
        if wanted.then == CLOSED:
            return Verdict(_statuses(await wire.read_to_end()), CLOSED)
        before = len(wanted.statuses)
        await wire.read_heads(before)
        if wanted.then == WAITS:
            wire.send_no_more()
            return Verdict(_statuses(await wire.read_to_end()), WAITS)
        await wire.send(PROBE)
        statuses = _statuses(await wire.read_to_end())
        return Verdict(statuses[:-1], GOES_ON if statuses[-1:] == (200,) else CLOSED)


def _statuses(answers: list[Answer]) -> tuple[int, ...]:
    return tuple(answer.status for answer in answers)


def is_right(case: Case, verdict: Verdict) -> bool:
    """What the corpus's README says of each `expect`."""
    statuses, then = verdict
    last = statuses[-1] if statuses else 0
    if any(status >= 500 and status not in (501, 505) for status in statuses):
        return False
    rejected = then == CLOSED and (not statuses or 400 <= last < 500 or last in (501, 505))
    # What is refused is one answer; nothing behind it, and nothing hidden in it, is another.
    rejected = rejected and len(statuses) <= case.answered + 1
    accepted = bool(statuses) and len(statuses) <= max(case.answered, 1) and not {400, 408} & set(statuses)
    match case.expect:
        case "accept":
            return accepted and (then == GOES_ON or case.changes_protocol)
        case "accept_close":
            return accepted and then == CLOSED and len(statuses) == 1
        case "reject":
            return rejected
        case "reject_or_accept":
            return rejected or accepted
        case "reject_or_close":
            return then == CLOSED and len(statuses) <= case.answered + 1
        case "incomplete":
            return then == WAITS and 400 not in statuses and len(statuses) <= case.answered
        case "reject_or_incomplete":
            return rejected or (then == WAITS and not any(200 <= status < 300 for status in statuses))
    return False


async def verdicts(port: int) -> dict[Case, Verdict | str]:
    """Every case sent whole."""

    async def judge(case: Case) -> Verdict | str:
        return await _or_fault(whole(port, case))

    return dict(zip(CASES, await _all(CASES, judge, AT_ONCE), strict=True))


async def _or_fault(verdict: Awaitable[Verdict]) -> Verdict | str:
    try:
        return await verdict
    except (AssertionError, ValueError, TimeoutError) as fault:
        return f"{type(fault).__name__}: {fault}".partition("\n")[0]


async def _all(items: list[Any], work: Callable[[Any], Awaitable[Any]], at_once: int) -> list[Any]:
    """The work on every item, so many at a time, in their order."""
    places = asyncio.Semaphore(at_once)

    async def one(item: Any) -> Any:
        async with places:
            return await work(item)

    return await asyncio.gather(*(one(item) for item in items))


async def test_every_request_gets_the_verdict_that_its_corpus_wants(impatient_engine: Engine) -> None:
    found = await verdicts(impatient_engine.port)
    wrong = [
        f"{case.name}: {case.expect}, was {verdict}"
        for case, verdict in found.items()
        if isinstance(verdict, str) or not is_right(case, verdict)
    ]
    assert not wrong, "\n".join(wrong)
    print(Counter(verdict.then for verdict in found.values() if isinstance(verdict, Verdict)))
    _is_well(impatient_engine)


@pytest.mark.slow
async def test_a_request_split_anywhere_gets_the_same_verdict(impatient_engine: Engine) -> None:
    port = impatient_engine.port
    found = await verdicts(port)
    splits = [(case, at) for case in CASES for at in range(1, len(case.raw))]
    if not corpora.FULL and splits:
        splits = random.Random(SEED).sample(splits, SAMPLE)
    wrong: list[str] = []

    async def judge(item: tuple[Case, int]) -> None:
        case, at = item
        wanted = found[case]
        assert isinstance(wanted, Verdict), f"{case.name}: {wanted}"
        verdict = await _or_fault(split(port, case, at, wanted))
        if verdict != wanted:
            wrong.append(f"{case.name} split at {at}: {verdict}, whole {wanted}")

    await _all(splits, judge, SPLITS_AT_ONCE)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(splits)}", *wrong[:50]])
    _is_well(impatient_engine)


def _is_well(engine: Engine) -> None:
    assert engine.is_ready()
    logged = engine.errors.read_text()
    assert "Traceback" not in logged, logged[logged.index("Traceback") :][:4000]
