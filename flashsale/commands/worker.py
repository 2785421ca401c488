"""`flashsale worker`: everything behind the answers: ledger writer, guard, payments, expiry, refunds, webhooks out.

Any number of workers may run: one has a duty, the others stand by.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashsale.settings import Settings

app = typer.Typer(rich_markup_mode=None, add_completion=False)

THREADS_END_S = 0.3


@app.command(epilog="Example: FLASHSALE_DATA_DIR=/srv/sale flashsale worker")
def worker(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild an empty or old Valkey without being told, as `up` does.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print {name, partition} first.")] = False,
) -> None:
    """Bring the journal into the ledger and do what follows (payments, expiry, webhooks) until SIGTERM. Needs a secret,
    Valkey and PostgreSQL."""
    import structlog
    import uvloop

    from flashsale import logs, metrics_files, runfile, settings

    chosen = settings.load()
    completed = runfile.completed(chosen)
    logs.set_up(chosen.log_level, part="worker")
    if (why := metrics_files.join(chosen.data_dir)) is not None:
        structlog.get_logger("flashsale.metrics").warning("metrics.not_shared", error=why)
    if as_json:
        logs.say(json.dumps({"name": "worker", "partition": 0}))
    uvloop.run(main(completed, rebuild))


async def main(settings: Settings, rebuild: bool) -> None:
    """Every duty of a worker, once the ledger has our tables, until SIGINT or SIGTERM. Raises NewerLedger."""
    import asyncio
    import signal

    import structlog

    from flashsale import duties, life_sign, runfile
    from flashsale.ledger.schema import wait_until_fit

    redis_url, database_url = runfile.addresses(settings)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    showing = asyncio.create_task(life_sign.show())
    if not await wait_until_fit(database_url, stop):
        showing.cancel()
        await _end([])
        return
    showing.cancel()  # the duties' own sign takes its place: one that hangs is no life
    late = await duties.work(settings, redis_url, database_url, rebuild, stop)
    if late:
        structlog.get_logger(__name__).warning("duties were cut short", duties=late)
    await _end(late)


async def _end(late: list[str]) -> None:
    """Ends the process at once where a duty was cut short or a thread is still at work (it reads a file, looks a name
    up): whatever it hangs on would hold up the process too. What was not committed is done again."""
    import asyncio

    if not late:
        ended = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
        done, _ = await asyncio.wait({ended}, timeout=THREADS_END_S)
        if done:
            return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
