"""/livez, /readyz and /metrics: whether this process lives, whether it takes orders, and what it and the others did."""

import asyncio

from aiohttp import web
from redis.exceptions import RedisError

from flashsale import metrics
from flashsale.front.answers import answer
from flashsale.front.context import FrontContext, context_of
from flashsale.ledger.pool import LedgerAway
from flashsale.reservation import commands, keys

_AWAY = (RedisError, OSError, TimeoutError)


async def livez(request: web.Request) -> web.Response:
    """200 as long as the process answers at all."""
    return answer(request, {"live": True})


async def readyz(request: web.Request) -> web.Response:
    """200 while orders are taken, else 503 with the reasons. An absent ledger is a warning: orders go on."""
    context = context_of(request)
    reasons = context.ready_reasons()
    warnings = await _ledger_warnings(context)
    response = answer(request, {"ready": not reasons, "reasons": reasons, "warnings": warnings})
    if reasons:
        response.set_status(503)
        response.headers["Retry-After"] = "1"
    return response


async def _ledger_warnings(context: FrontContext) -> list[str]:
    try:
        async with context.ledger.connection() as connection:
            await connection.fetchval("SELECT 1")
    except LedgerAway as away:
        return [f"the ledger is away: {away}"]
    return []


async def show_metrics(request: web.Request) -> web.Response:
    """Prometheus's text format, for all processes of this engine."""
    backlog = await _backlog(context_of(request))
    text = await asyncio.to_thread(metrics.exposition, backlog)
    return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _backlog(context: FrontContext) -> metrics.Backlog:
    try:
        partition = await commands.read_partition(context.valkey)
        async with context.valkey.pipeline(transaction=False) as calls:
            calls.xlen(keys.journal(0))
            calls.xrange(keys.journal(0), count=1)
            calls.time()
            entries, first, (now_s, now_us) = await calls.execute()
    except _AWAY:
        return metrics.Backlog(None, 0, 0)
    size = partition.written - partition.trimmed if partition else 0
    first_ms = int(first[0][0].partition(b"-")[0]) if first else 0
    return metrics.Backlog(entries, size, max(0.0, now_s + now_us / 1e6 - first_ms / 1000) if first else 0.0)
