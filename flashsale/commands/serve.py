"""`flashsale serve`: the front ends alone, on the servers that the environment or a running engine names."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flashsale.settings import Settings

app = typer.Typer(rich_markup_mode=None, add_completion=False)

# Files that a front has open beside its clients: its links to Valkey (8), listeners, log, metrics, the loop's own, what
# the interpreter reads while it runs; and the clients that are taken in one turn of the loop before the bound is seen.
OWN_DESCRIPTORS = 128


class TooFewDescriptors(Exception):
    """The process may open too few files to serve anybody."""


@app.command(epilog="Example: FLASHSALE_REDIS_URL=… FLASHSALE_DATABASE_URL=… flashsale serve --processes 4")
def serve(
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Front-end processes that share the port.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {url, processes} first.")] = False,
) -> None:
    """Answer shoppers until SIGTERM, then drain. Needs a secret, Valkey and PostgreSQL."""
    import structlog

    from flashsale import logs, metrics_files, runfile, settings

    chosen = settings.load(processes=processes)
    completed = runfile.completed(chosen)
    logs.set_up(chosen.log_level, part="front")
    if as_json:
        logs.say(json.dumps({"url": f"http://{chosen.host}:{chosen.port}", "processes": chosen.processes}))
    asyncio.run(_ledger_is_not_newer(completed))
    if chosen.processes > 1:
        from flashsale.engine.front_ends import FrontEnds

        asyncio.run(FrontEnds(chosen).run())
        sys.exit(0)
    if (why := metrics_files.join(chosen.data_dir)) is not None:
        structlog.get_logger("flashsale.metrics").warning("metrics.not_shared", error=why)
    from flashsale import life_sign
    from flashsale.front.process import serve as serve_one

    serve_one(_within_descriptors(completed), life_sign.show)


async def _ledger_is_not_newer(chosen: Settings) -> None:
    """Says in one line what the ledger lacks: orders go on without it. Raises NewerLedger: what its rows mean is not
    known here, so that nothing may be read or written there."""
    import structlog

    from flashsale.ledger import schema

    try:
        async with asyncio.timeout(chosen.ledger_timeout_s):
            found, line = await schema.told(chosen.database_url or "")
    except TimeoutError:
        found, line = None, "the ledger does not answer"
    if found is schema.State.NEWER:
        raise schema.NewerLedger(line)
    if line:
        structlog.get_logger("flashsale.front").warning("ledger.not_fit", reason=line)


def _within_descriptors(chosen: Settings) -> Settings:
    """The same settings, with no more connections than there can be open files.

    Shells allow few of them: the process takes as many as the machine lets it have, and keeps back what it needs
    itself, so that a crowd never takes the descriptor by which it finds Valkey again. Raises TooFewDescriptors.
    """
    import structlog

    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if limit == resource.RLIM_INFINITY:
        return chosen
    own = OWN_DESCRIPTORS + chosen.ledger_connections + chosen.valkey_connections + chosen.payments_concurrency
    left = limit - own
    if left < 1:
        raise TooFewDescriptors(
            f"this process may open {limit} files and needs {own} for itself: raise its limit (ulimit -Hn, LimitNOFILE)"
        )
    if left < chosen.connections_max:
        structlog.get_logger("flashsale.front").info(
            "connections.fewer", connections=left, asked=chosen.connections_max, open_files=limit, kept_back=own
        )
    return chosen.model_copy(update={"connections_max": min(left, chosen.connections_max)})
