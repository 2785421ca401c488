"""/livez, /readyz and /metrics: whether this process lives, whether it takes orders, and what it and the others did."""

import asyncio

from aiohttp import web
from redis.exceptions import RedisError

from flashsale import metrics
from flashsale.front.answers import answer, rfc3339
from flashsale.front.context import FrontContext, context_of
from flashsale.front.sharing import SHARED
from flashsale.ledger import promises, set_aside
from flashsale.ledger.pool import LedgerAway
from flashsale.ledger.promises import AlertRow
from flashsale.reservation import commands, keys, workers
from flashsale.sale.shipping.lanes import Lane

_AWAY = (RedisError, OSError, TimeoutError)


async def livez(request: web.Request) -> web.Response:
    """200 as long as the process answers at all."""
    return answer(request, {"live": True})


async def readyz(request: web.Request) -> web.Response:
    """200 while orders are taken, else 503 with the reasons. An absent ledger is a warning: orders go on."""
    context = context_of(request)
    reasons = context.ready_reasons()
    warnings = await _ledger_warnings(context)
    try:
        warnings += await workers.warnings(context.valkey)
    except _AWAY:
        warnings.append("whether a worker lives is not known: Valkey does not answer")
    if context.settings.payments_sandbox_url is not None:
        warnings.append("payments go to the sandbox: no money moves")
    response = answer(request, {"ready": not reasons, "reasons": reasons, "warnings": warnings})
    if reasons:
        response.set_status(503)
        response.headers["Retry-After"] = "1"
    return response


async def _ledger_warnings(context: FrontContext) -> list[str]:
    try:
        async with context.ledger.connection() as connection:
            alerts = await promises.alerts(connection)
            waiting = await set_aside.waiting(connection)
    except LedgerAway as away:
        return [f"the ledger is away: {away}"]
    lanes = context.catalogues.current.world.lanes
    warnings = [_late(alert, lanes.by_number(alert.lane_number)) for alert in alerts]
    if waiting:
        many = f"{waiting} or more" if waiting == set_aside.WAITING_MAX else str(waiting)
        warnings.append(f"set aside, since nothing could be done with it: {many} (`flashsale deadletters list`)")
    return warnings


def _late(alert: AlertRow, lane: Lane | None) -> str:
    name = lane.id if lane is not None else f"number {alert.lane_number}"
    said = f"when it fell to {alert.share.on_time} of the last {alert.share.deliveries}"
    return f"lane {name} to {alert.market} keeps too few of its promises since {rfc3339(alert.raised_ms)}, {said}"


async def show_metrics(request: web.Request) -> web.Response:
    """Prometheus's text format, for all processes of this engine; who asks while it is made shares the next."""
    return await request.app[SHARED].answer(request, _metrics)


async def _metrics(request: web.Request) -> web.Response:
    context = context_of(request)
    backlog, promised = await _backlog(context), await _promises(context)
    text = await asyncio.to_thread(metrics.exposition, backlog, promised)
    return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _promises(context: FrontContext) -> metrics.Promises:
    """Nothing of them while the ledger is away."""
    try:
        async with context.ledger.connection() as connection:
            found = await promises.overview(connection)
    except LedgerAway:
        found = []
    return metrics.Promises((each.lane, each.market, each.share.ratio, each.alert) for each in found)


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
