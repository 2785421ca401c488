"""`flashsale serve`: the front ends alone, on the servers that the environment or a running engine names."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog="Example: FLASHSALE_REDIS_URL=… FLASHSALE_DATABASE_URL=… flashsale serve --processes 4")
def serve(
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Front-end processes that share the port.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print {url, processes} first.")] = False,
) -> None:
    """Answer shoppers until SIGTERM, then drain. Needs a secret, Valkey and PostgreSQL."""
    from flashsale import logs, runfile, settings

    chosen = settings.load(processes=processes)
    completed = runfile.completed(chosen)
    logs.set_up(chosen.log_level, part="front")
    metrics_dir = chosen.data_dir / "metrics"
    metrics_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # prometheus-client looks for it when it is first imported.
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(metrics_dir))
    if as_json:
        print(json.dumps({"url": f"http://{chosen.host}:{chosen.port}", "processes": chosen.processes}), flush=True)
    if chosen.processes > 1:
        import asyncio

        from flashsale.engine.front_ends import FrontEnds

        asyncio.run(FrontEnds(chosen).run())
        sys.exit(0)
    from flashsale.front.process import serve as serve_one

    _allow_connections()
    serve_one(completed)


def _allow_connections() -> None:
    """Every connection is an open file, and shells allow few of them: as many as the machine lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
