"""No memory and no descriptor left: orders are refused or wait, nothing else happens, and all comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from flashsale import runfile
from tests.conftest import FLASHSALE, Engine
from tests.crowd import Crowd, open_sale
from tests.e2e.test_chaos import FLOWING, SEED, came_through, ready_again, stopped_clean
from tests.processes import pids
from tests.wire import answers_in, ask, get, post_order

OPEN_FILES = 300
CLIENTS = 400  # more than that
BACK_WITHIN_S = 10.0

pytestmark = pytest.mark.chaos

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def asked(streams: Streams, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer on this connection, which stays open."""
    reader, writer = streams
    writer.write(request)
    received = b""
    async with asyncio.timeout(10):
        while not (answers := answers_in(received, ended=False)):
            data = await reader.read(64 * 1024)
            assert data, f"closed after {received!r}"
            received += data
    return answers[0].status, answers[0].body


async def test_a_crowd_of_connections_takes_no_descriptor_that_the_engine_needs(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    with engine.output.open("wb") as output, engine.errors.open("wb") as errors:
        engine.process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            ["/bin/sh", "-c", f"ulimit -n {OPEN_FILES}; exec {FLASHSALE} up"],
            env=engine.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
    await asyncio.to_thread(engine.wait_for_line, f"ready {engine.url}")
    assert "connections.fewer" in engine.errors.read_text()
    token = engine.token("shopper", "ann")
    body = b'{"sale": "double11", "lines": [{"sku": "HAIER-FRIDGE-320", "quantity": 1}], "market": "SG"}'
    first = await asyncio.open_connection("127.0.0.1", engine.port)
    assert (await asked(first, post_order(body, token, "before")))[0] == 201
    tried = await asyncio.gather(
        *(asyncio.open_connection("127.0.0.1", engine.port) for _ in range(CLIENTS)), return_exceptions=True
    )
    crowd = [streams for streams in tried if not isinstance(streams, BaseException)]
    killed = pids(engine)["valkey"]
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    statuses = [0]
    while statuses[-1] != 201:  # the crowd holds its connections all the while
        assert time.monotonic() - began < BACK_WITHIN_S, (statuses, engine.errors.read_text()[-3000:])
        statuses.append((await asked(first, post_order(body, token, "after")))[0])
        await asyncio.sleep(0.05)
    assert set(statuses) <= {0, 201, 503, 504}
    for path in ("/v1/sales", "/readyz", "/v1/sales/double11/offers?market=SG"):
        status, answer = await asked(first, get(path))
        assert status == 200, (path, answer)
    for _, writer in (first, *crowd):
        writer.transport.abort()
    await ready_again(engine, {"valkey": killed})
    stopped_clean(engine)


async def test_full_memory_refuses_orders_before_any_work_and_room_alone_makes_all_well(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make_engine().start()
    open_sale(engine, "crowd", tmp_path)
    running = runfile.read(engine.data_dir)
    assert running is not None
    with redis.Redis.from_url(running["valkey"]["address"]) as valkey:
        async with Crowd(engine, "crowd", SEED) as crowd:
            await crowd.until_accepted(FLOWING)
            before = pids(engine)
            valkey.config_set("maxmemory", "1mb")
            full = time.monotonic()
            await crowd.until(lambda: crowd.statuses(full)[503] > FLOWING)
            (answer,) = await ask(engine.port, get("/livez"))
            assert answer.status == 200
            assert crowd.statuses(full).keys() <= {201, 409, 503}
            assert crowd.problems().keys() >= {"overloaded"}
            valkey.config_set("maxmemory", "2gb")
            await crowd.until_accepted(FLOWING, BACK_WITHIN_S)
        await came_through(engine, crowd)
    assert pids(engine) == before  # nothing died of it
    stopped_clean(engine)
